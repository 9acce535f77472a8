"""Memory for batches: used again when nothing refers to it, and not before."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from facerec.images import buffers

SHAPE = (40, 112, 112, 3)  # 1.5 MB


@pytest.fixture(autouse=True)
def _no_free_blocks() -> None:
    buffers._free.clear()


def test_a_block_is_used_again_when_its_tensor_is_gone() -> None:
    first = buffers.empty(SHAPE, torch.uint8)
    place = first.data_ptr()
    assert first.shape == SHAPE and first.dtype == torch.uint8 and first.is_contiguous() and place % 64 == 0
    assert buffers.empty(SHAPE, torch.uint8).data_ptr() != place
    del first
    assert place in {buffers.empty(SHAPE, torch.uint8).data_ptr() for _ in range(3)}


@pytest.mark.parametrize("keep", ["view", "array", "storage", "graph", "thread"])
def test_a_block_is_not_used_again_while_anything_refers_to_it(keep: str) -> None:
    tensor = buffers.empty(SHAPE, torch.float32).fill_(1)
    place = tensor.data_ptr()
    go, gone = threading.Event(), []
    kept: object = None
    if keep == "view":
        kept = tensor[3:5].permute(0, 3, 1, 2)
    elif keep == "array":
        kept = tensor.numpy()[7]
    elif keep == "storage":
        kept = tensor.untyped_storage()
    elif keep == "graph":
        weight = torch.ones((), requires_grad=True)
        kept = (weight * tensor).sum()
    else:
        kept = threading.Thread(
            target=lambda held: (go.wait(5), gone.append(float(held.sum()))), args=(tensor,)
        )
        kept.start()
    del tensor
    others = [buffers.empty(SHAPE, torch.float32).fill_(9) for _ in range(4)]
    assert place not in {other.data_ptr() for other in others}
    if keep == "graph":
        kept.backward()  # type: ignore[attr-defined]
        assert weight.grad == np.prod(SHAPE)  # the saved ones are still ones
        del weight
    elif keep == "thread":
        go.set()
        kept.join()  # type: ignore[attr-defined]
        assert gone == [float(np.prod(SHAPE))]
    del kept
    gc.collect()
    assert buffers.empty(SHAPE, torch.float32).data_ptr() == place


def test_threads_never_share_a_block() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            tensor = buffers.empty((1 << 20,), torch.uint8)
            tensor.fill_(number)
            if int(tensor.min()) != number or int(tensor.max()) != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_more_than_a_few_free_blocks_are_kept() -> None:
    many = [buffers.empty((1 << 20,), torch.uint8) for _ in range(40)]
    del many
    assert [len(free) for free in buffers._free.values()] == [buffers._KEPT]


def test_small_tensors_and_other_devices_are_left_to_torch() -> None:
    assert buffers.empty((3, 4), torch.int64).shape == (3, 4)
    assert buffers.empty(SHAPE, torch.float32, "meta").device.type == "meta"
    assert not buffers._free
