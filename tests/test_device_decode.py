"""Decoding on the device: the batches are those of the threads, and damage is met as there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from facerec.errors import ConfigError, DamagedDataError
from facerec.images import device_decode
from facerec.images.decode import decode
from facerec.images.device_decode import Undecoded, for_device
from facerec.images.images import LabelledImages
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import prepare
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.packs.pack import open_pack
from tests.making import image
from tests.tiny_run import MemoryImages

CPU = torch.device("cpu")
COUNT, SIZE = 30, 32
small = partial(image, size=(SIZE, SIZE))


def garbled(i: int) -> bytes:
    """A JPEG with its head and end in order, whose scan asks for a Huffman table that is not there."""
    whole = bytearray(small(i))
    whole[whole.index(b"\xff\xda") + 6] = 0x33
    return bytes(whole)


class Mixed(MemoryImages):
    """Mostly ordinary JPEGs, and every kind that is not."""

    def __init__(self, **other: bytes) -> None:
        files = [small(i) for i in range(COUNT)]
        files[3] = small(3, kind="PNG")
        files[7] = small(7, mode="L")
        files[8] = small(8, orientation=6)
        files[9] = small(9, mode="CMYK")
        files[11] = small(11, progressive=True)
        files[12] = small(12) + b"padding"
        for i, content in other.items():
            files[int(i[1:])] = content
        super().__init__("mixed", np.arange(COUNT) // 3, files)


def prepared(faces: LabelledImages, decoder: str, **given):
    loader = Loader(faces, 8, DataSettings(size=SIZE, decoder=decoder, **given), seed=2)
    batches = [(*prepare(batch, CPU, Preprocessing(size=32)), batch) for batch in loader.batches(1)]
    return loader, batches


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_those_of_the_threads(workers: int) -> None:
    _, ours = prepared(Mixed(), "device", workers=workers)
    _, theirs = prepared(Mixed(), "threads")
    assert len(ours) == len(theirs) == 4
    for (ours_BCHW, label, batch), (their_image, their_label, their_batch) in zip(ours, theirs, strict=True):
        assert torch.equal(ours_BCHW, their_image)  # on a CPU the decoders agree to the bit
        assert torch.equal(label, their_label)
        assert batch.sizes == their_batch.sizes and batch.position == their_batch.position
        assert len(batch.image_BHWC) == 0 and batch.undecoded is not None and their_batch.undecoded is None


def test_ordinary_files_are_left_to_the_device_and_others_are_not() -> None:
    files = Mixed().files
    assert [i for i in range(COUNT) if for_device(files[i]) is None] == [3, 8, 9, 12]
    assert for_device(memoryview(files[0])).numpy().tobytes() == files[0]  # type: ignore[union-attr]
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", files[0][:-1], files[0][:100], bytes(500)):
        assert for_device(content) is None


def test_images_of_another_size_are_resized_to_cover_and_cropped() -> None:
    given = [small(1, size=shape) for shape in ((64, 64), (90, 40), (20, 33), (32, 32))]
    for size in ((32, 32), (48, 32)):
        files = [for_device(one) for one in given]
        assert all(one is not None for one in files)
        image_BHWC = Undecoded(files, size, lambda _: pytest.fail("not needed")).decode(CPU)  # type: ignore[arg-type]
        assert image_BHWC.shape == (4, *size, 3) and image_BHWC.dtype == torch.uint8
        for ours_HWC, one in zip(image_BHWC.numpy(), given, strict=True):
            assert np.abs(ours_HWC.astype(float) - decode(one, size)).mean() < 3


def test_damage_that_only_the_device_meets_stops_the_run_and_is_named() -> None:
    damaged = garbled(5)
    assert for_device(damaged) is not None
    with pytest.raises(DamagedDataError, match=r"^key 5 of /mixed: .*data\.on_error=skip"):
        prepared(Mixed(_5=damaged), "device")
    with pytest.raises(DamagedDataError, match=r"^key 6 of /mixed: .*data\.on_error=skip"):
        prepared(Mixed(_6=small(6)[:200]), "device")


def test_damaged_images_are_replaced_with_their_labels_and_mirrors() -> None:
    damage = {"_5": garbled(5), "_6": small(6)[:200], "_14": b"", "_29": garbled(29)}
    loader, ours = prepared(Mixed(**damage), "device", on_error="skip")
    other, theirs = prepared(Mixed(**damage), "threads", on_error="skip")
    assert loader.skipped == other.skipped == 4
    for (ours_BCHW, label, batch), (their_image, their_label, their_batch) in zip(ours, theirs, strict=True):
        assert torch.equal(ours_BCHW, their_image)
        assert torch.equal(label, their_label)
        assert torch.equal(batch.mirror_B, their_batch.mirror_B)
        assert np.array_equal(batch.index_B, their_batch.index_B)


def test_a_device_that_decodes_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(files, device):
        raise RuntimeError("not compiled with nvJPEG support\nstack")

    monkeypatch.setattr(device_decode, "_torchvision", refuses)
    with pytest.raises(
        ConfigError, match=r"data\.decoder=device: does not work on cpu \(not compiled .*threads"
    ):
        prepared(Mixed(), "device")


def test_a_device_out_of_memory_is_no_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device_decode, "_torchvision", full)
    with pytest.raises(torch.OutOfMemoryError):
        prepared(Mixed(), "device", on_error="skip")


def test_augmentation_follows_the_decoding() -> None:
    augment = {"gray": 1.0}
    _, ours = prepared(Mixed(), "device", augment=augment)
    _, theirs = prepared(Mixed(), "threads", augment=augment)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(ours[0][0][:, 0], ours[0][0][:, 1])


def test_real_faces_decode_to_the_same_pixels(lfw_root: Path) -> None:
    pack = open_pack(lfw_root)
    batches = Loader(pack, 256, DataSettings(decoder="device")).batches(0)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert batch.undecoded is not None
    image_BHWC = batch.undecoded.decode(CPU).numpy()
    for image_HWC, i in zip(image_BHWC, batch.index_B.tolist(), strict=True):
        assert np.array_equal(image_HWC, decode(pack.encoded(i)))
