"""Degenerate inputs, half precision, wrong labels, and what a head must not allocate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from facerec.errors import DamagedDataError, UserError
from facerec.heads import HEADS, create_head
from facerec.heads.base import ClassHead
from tests.heads_cases import CLASS_HEADS

SIZE = 16
ONE_ROW_PER_CLASS = [
    name for name in CLASS_HEADS if create_head(name, num_classes=1, embedding_size=1).weight.ndim == 2
]


def degenerate_batch(head: ClassHead, size: int, classes: int) -> tuple[Tensor, Tensor]:
    """Parallel and antiparallel to the class, zero, near-zero, tiny, huge, and ordinary embeddings."""
    y = torch.arange(size) % classes
    own = head.weight.detach()[y]
    own = torch.nn.functional.normalize(own if own.ndim == 2 else own[:, 0])
    x = torch.randn(size, SIZE)
    kinds = [own, -own, own * 0, own * 1e-7, x * 1e-3, x * 100, 20 * own, -20 * own, own + 1e-4 * x, x]
    for i in range(size):
        x[i] = kinds[i % len(kinds)][i]
    return x, y


MODES: list[tuple[str, torch.dtype, torch.dtype | None]] = [
    ("fp32", torch.float32, None),
    ("bf16 autocast", torch.float32, torch.bfloat16),
    ("fp16 autocast", torch.float32, torch.float16),
    ("bf16 embeddings", torch.bfloat16, torch.bfloat16),
    ("fp16 embeddings", torch.float16, torch.float16),
]


@pytest.mark.parametrize(("dtype", "autocast"), [mode[1:] for mode in MODES], ids=[mode[0] for mode in MODES])
@pytest.mark.parametrize("name", CLASS_HEADS)
def test_loss_and_gradients_stay_finite(name: str, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    for classes, size, shared in (
        (7, 20, False),
        (7, 20, True),
        (1, 10, False),
        (2, 1, False),
        (1, 1, False),
    ):
        torch.manual_seed(0)
        head = create_head(name, num_classes=classes, embedding_size=SIZE, block_size=3)
        x, y = degenerate_batch(head, size, classes)
        y = torch.zeros_like(y) if shared else y
        x = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            loss = head(x, y).loss
            loss.backward()  # inside the autocast region, as some loops do
        assert loss.isfinite(), (classes, size)
        assert loss.dtype == torch.float32
        for gradient in (x.grad, *(parameter.grad for parameter in head.parameters())):
            assert gradient is not None
            assert gradient.isfinite().all(), (classes, size)
        for buffer in head.buffers():
            assert buffer.isfinite().all()


@pytest.mark.parametrize("name", CLASS_HEADS)
def test_parallel_and_antiparallel_samples_one_at_a_time(name: str) -> None:
    """Alone in its batch a sample can't hide behind the others."""
    torch.manual_seed(1)
    head = create_head(name, num_classes=5, embedding_size=SIZE)
    own = head.weight.detach()[2]
    own = own if own.ndim == 1 else own[0]
    for factor in (1.0, -1.0, 30.0, -30.0, 0.0):
        x = (factor * torch.nn.functional.normalize(own, dim=0))[None].requires_grad_()
        loss = head(x, torch.tensor([2])).loss
        loss.backward()
        assert loss.isfinite() and x.grad.isfinite().all(), factor


def test_zero_embedding_has_no_direction_to_be_moved_in() -> None:
    x = torch.zeros(2, SIZE, dtype=torch.float16, requires_grad=True)
    create_head("arcface", num_classes=3, embedding_size=SIZE)(x, torch.tensor([0, 1])).loss.backward()
    assert (x.grad == 0).all()
    naive = torch.zeros(2, SIZE, dtype=torch.float16, requires_grad=True)
    (64 * torch.nn.functional.normalize(naive.float()).sum()).backward()
    assert naive.grad.isinf().any()


@pytest.mark.parametrize("name", CLASS_HEADS)
def test_autocast_does_not_round_the_cosines(name: str) -> None:
    torch.manual_seed(0)
    head = create_head(name, num_classes=9, embedding_size=SIZE).eval()
    x, y = torch.randn(8, SIZE), torch.arange(8)
    plain = head(x, y).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head(x, y).loss, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(HEADS.names()))
@pytest.mark.parametrize("label", [-1, 5])
def test_label_outside_the_classes_is_named(name: str, label: int) -> None:
    head = create_head(name, num_classes=5, embedding_size=SIZE)
    y = torch.tensor([0, 1, label, 2])
    with pytest.raises(DamagedDataError, match=rf"label {label} \(sample 2 of the batch\) is outside 0…4"):
        head(torch.randn(4, SIZE), y)


@pytest.mark.parametrize("name", sorted(HEADS.names()))
def test_embeddings_and_labels_of_another_shape_or_type_are_refused_in_a_line(name: str) -> None:
    head = create_head(name, num_classes=5, embedding_size=SIZE)
    x, y = torch.randn(4, SIZE), torch.tensor([0, 1, 4, 2])
    with pytest.raises(UserError, match=r"labels of shape \(4, 1\) do not fit 4 .* must be of shape \(4,\)"):
        head(x, y[:, None])
    with pytest.raises(UserError, match=r"labels of shape \(3,\) do not fit 4 embeddings"):
        head(x, y[:3])
    with pytest.raises(UserError, match=r"labels are torch\.float32; they must be integers"):
        head(x, y.float())
    with pytest.raises(UserError, match=rf"embeddings of shape \(4, {SIZE - 1}\) do not fit.*\(B, {SIZE}\)"):
        head(x[:, 1:], y)


def test_int32_labels_are_labels() -> None:
    head = create_head("arcface", num_classes=5, embedding_size=SIZE)
    x, y = torch.randn(4, SIZE), torch.tensor([0, 1, 4, 2])
    assert head(x, y.int()).loss == head(x, y).loss


class Allocations(TorchDispatchMode):
    """Notes the size in bytes of every storage that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        made = [x.untyped_storage() for x in _tensors(out)]
        self.sizes += [storage.nbytes() for storage in made if storage._cdata not in known]
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("name", ONE_ROW_PER_CLASS)
def test_no_tensor_of_all_samples_by_all_classes_is_made(name: str, memory: str) -> None:
    """The largest new tensor is the weights' gradient; kept products are one B×C altogether, in blocks."""
    batch, classes, size, block = 64, 1024, 8, 128
    head = create_head(name, num_classes=classes, embedding_size=size, memory=memory, block_size=block)
    x, y = torch.randn(batch, size, requires_grad=True), torch.randint(classes, (batch,))
    with Allocations() as allocations:
        head(x, y).loss.backward()
    whole = 4 * batch * classes
    assert max(allocations.sizes) <= max(4 * classes * size, 8 * batch * block)
    assert max(allocations.sizes) < whole / 4

    with Allocations() as naive:  # what this test would see of a one-hot reference
        one_hot = torch.nn.functional.one_hot(y, classes).float()
        torch.nn.functional.cross_entropy(x @ head.weight.t() - one_hot, y).backward()
    assert max(naive.sizes) >= whole


@pytest.mark.parametrize(("memory", "blocks"), [("keep", 16), ("recompute", 0)])
@pytest.mark.parametrize("name", ["arcface", "softmax", "sface"])
def test_what_is_kept_for_the_backward_pass(name: str, memory: str, blocks: int) -> None:
    """Keeping holds one B×C of products between the passes, recomputing nothing that grows with B×C."""
    batch, classes, size = 64, 4096, 8
    head = create_head(name, num_classes=classes, embedding_size=size, memory=memory, block_size=256)
    x, y = torch.randn(batch, size, requires_grad=True), torch.randint(classes, (batch,))
    held: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        held.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        loss = head(x, y).loss
    assert sorted(held).count(batch * 256) == blocks
    assert sum(n for n in held if n > classes * size) == 0
    loss.backward()
