"""Loading: the same batches whatever the threads and processes, damage named or skipped, no thread left."""

from __future__ import annotations

import io
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facerec.errors import DamagedDataError, MissingDataError
from facerec.images.decode import decode, ppm
from facerec.images.images import LabelledImages
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import Batch, mirror_where, prepare
from facerec.loading.loader import Loader
from facerec.loading.order import Order, mirrored
from facerec.loading.settings import DataSettings
from facerec.packs.pack import open_pack
from facerec.packs.recordio import Record, RecordWriter
from tests.tiny_run import MemoryImages

COUNT = 50


def jpeg(i: int, side: int = 32) -> bytes:
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


JPEGS = [jpeg(i) for i in range(COUNT)]


class Memory(MemoryImages):
    """COUNT images of COUNT // 5 identities in memory; it counts what is asked of it."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        files = [one[:100] if i in broken else one for i, one in enumerate(JPEGS)]
        super().__init__("toy", np.arange(COUNT) // 5, files)
        self.asked: list[int] = []
        self.hinted: list[int] = []

    def encoded(self, i: int) -> bytes:
        self.asked.append(i)
        return super().encoded(i)

    def prefetch(self, positions) -> None:
        self.hinted.extend(positions)


def load(faces: LabelledImages | None = None, batch_size: int = 8, epoch: int = 0, start: int = 0, **given):
    return list(loader(faces or Memory(), batch_size, **given).batches(epoch, start))


def loader(
    faces: LabelledImages, batch_size: int, *, seed: int = 1, rank: int = 0, world_size: int = 1, **given
) -> Loader:
    """A loader of images of 32 pixels; `given` are settings of `data`."""
    data = DataSettings(**{"size": 32} | given)
    return Loader(faces, batch_size, data, seed=seed, rank=rank, world_size=world_size)


def same(ours: list[Batch], others: list[Batch]) -> bool:
    return len(ours) == len(others) and all(
        torch.equal(a.image_BHWC, b.image_BHWC)
        and torch.equal(a.label_B, b.label_B)
        and torch.equal(a.mirror_B, b.mirror_B)
        and np.array_equal(a.index_B, b.index_B)
        and a.position == b.position
        for a, b in zip(ours, others, strict=True)
    )


def no_loader_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("facerec")]


def test_a_batch_holds_images_labels_and_coins_of_its_samples() -> None:
    batches = load(epoch=3)
    index = np.concatenate([batch.index_B for batch in batches])
    assert np.array_equal(index, Order(COUNT, seed=1).take(3, 0, COUNT))
    for batch in batches:
        assert batch.image_BHWC.dtype == torch.uint8
        assert batch.label_B.dtype == torch.int64
        for image, i in zip(batch.image_BHWC, batch.index_B, strict=True):
            assert np.array_equal(image.numpy(), decode(JPEGS[i], 32))
        assert batch.label_B.tolist() == (batch.index_B // 5).tolist()
        assert np.array_equal(batch.mirror_B.numpy(), mirrored(1, 3, batch.index_B))
    assert [batch.position for batch in batches] == [8, 16, 24, 32, 40, 48, 50]


@pytest.mark.parametrize("shuffle", ["full", "block", "none"])
def test_batches_do_not_depend_on_threads_and_read_ahead(shuffle: str) -> None:
    given = {"shuffle": shuffle, "block_size": 6, "window": 2}
    first = load(workers=1, prefetch=1, **given)
    for workers, prefetch in ((2, 3), (7, 1), (3, 50)):
        assert same(first, load(workers=workers, prefetch=prefetch, **given))


def test_epochs_differ_and_repeat_under_one_seed() -> None:
    assert same(load(epoch=1), load(epoch=1))
    assert not same(load(epoch=1), load(epoch=2))
    assert not same(load(seed=1), load(seed=2))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_together_take_what_one_would(world_size: int) -> None:
    alone = load(batch_size=2 * world_size, drop_last=False)
    by_rank = [
        load(batch_size=2, rank=rank, world_size=world_size, drop_last=False) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    taken = []
    for parts in zip(*by_rank, strict=True):
        assert len({part.position for part in parts}) == 1
        taken.append(np.concatenate([part.index_B for part in parts]))
    for whole, part in zip(alone, taken, strict=False):
        assert np.array_equal(whole.index_B, part)
    left = COUNT - sum(map(len, taken))
    assert left < world_size


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 5)])
def test_an_epoch_goes_on_where_it_was_left_with_another_number_of_processes(before: int, after: int) -> None:
    loaders = [loader(Memory(), 3, rank=r, world_size=before) for r in range(before)]
    seen: list[int] = []
    position = 0
    streams = [one.batches(2) for one in loaders]
    for _ in range(3):
        batches = [next(stream) for stream in streams]
        seen.extend(np.concatenate([batch.index_B for batch in batches]))
        position = batches[0].position
    for stream in streams:
        stream.close()
    rest = [load(None, 2, 2, position, rank=r, world_size=after, drop_last=False) for r in range(after)]
    for batches in zip(*rest, strict=True):
        seen.extend(np.concatenate([batch.index_B for batch in batches]))
    assert seen == Order(COUNT, seed=1).take(2, 0, len(seen)).tolist()
    assert COUNT - len(seen) < after


def test_the_rest_of_an_epoch_is_a_smaller_batch_unless_too_small_for_batch_norm() -> None:
    assert [len(batch.label_B) for batch in load(batch_size=24)] == [24, 24, 2]
    assert [len(batch.label_B) for batch in load(batch_size=7)] == [7] * 7  # 50 = 7·7 + 1
    assert len(load(batch_size=7, drop_last=False)[-1].label_B) == 1
    assert [len(batch.label_B) for batch in load(batch_size=24, drop_last=True)] == [24, 24]
    whole = loader(Memory(), 24)
    assert [whole.batches_per_epoch(start) for start in (0, 1, 2, 26, 48, 49, 50)] == [3, 2, 2, 1, 1, 0, 0]


def test_a_image_that_does_not_decode_stops_the_epoch_and_is_named() -> None:
    order = Order(COUNT, seed=1).take(0, 0, COUNT)
    broken = (int(order[20]), int(order[30]), int(order[21]))
    for workers in (1, 4):
        with pytest.raises(DamagedDataError) as caught:
            load(Memory(broken), workers=workers)
        assert str(caught.value).startswith(f"key {order[20]} of /toy: ")
        assert "data.on_error=skip" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert no_loader_threads()


def test_skipping_takes_the_next_image_that_decodes_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    broken = (7, 8, 20, COUNT - 1)
    next_good = {7: 9, 8: 9, 20: 21, COUNT - 1: 0}
    expected = [next_good.get(i, i) for i in Order(COUNT, seed=1).take(0, 0, COUNT).tolist()]
    results = []
    for workers in (1, 3):
        skipping = loader(Memory(broken), 8, workers=workers, on_error="skip")
        with caplog.at_level(logging.WARNING):
            batches = list(skipping.batches(0))
        assert skipping.skipped == 4
        assert [i for batch in batches for i in batch.index_B.tolist()] == expected
        results.append(batches)
    for batch in results[0]:
        for image, i in zip(batch.image_BHWC, batch.index_B, strict=True):
            assert np.array_equal(image.numpy(), decode(JPEGS[i], 32))
        assert np.array_equal(batch.mirror_B.numpy(), mirrored(1, 0, batch.index_B))
        assert batch.label_B.tolist() == (batch.index_B // 5).tolist()
    assert same(*results)
    assert "skipped an image that does not decode: key 7 of /toy: " in caplog.text
    assert "replaced: 4 for the first time, 4 in all" in caplog.text


def test_only_the_first_few_skipped_images_are_named(caplog: pytest.LogCaptureFixture) -> None:
    skipping = loader(Memory(tuple(range(20))), 8, on_error="skip")
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            list(skipping.batches(epoch))
    assert caplog.text.count("skipped an image that does not decode") == 5
    assert caplog.text.count("only counted") == 1
    assert skipping.skipped == 20
    assert caplog.text.count("in all") == 1  # the second epoch met no new ones


def test_where_nothing_decodes_skipping_ends() -> None:
    with pytest.raises(DamagedDataError, match="50 images in a row do not decode; the first: key "):
        load(Memory(tuple(range(COUNT))), on_error="skip")


def test_damage_in_a_pack_is_named_by_key_and_offset(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "train.rec") as writer:
        for i in range(20):
            payload = b"not an image" if i == 13 else JPEGS[i]
            writer.write(i, Record(0, float(i // 2), i, 0, payload))
    pack = open_pack(tmp_path)
    with pytest.raises(DamagedDataError, match=r"^key 13 at offset \d+ of .*train\.rec: .*known format"):
        load(pack)
    batches = load(pack, on_error="skip")
    assert sorted(i for batch in batches for i in batch.index_B.tolist()) == sorted(
        [*range(13), 14, *range(14, 20)]
    )


def test_other_errors_of_the_source_reach_the_caller() -> None:
    class Failing(Memory):
        def encoded(self, i: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        load(Failing(), on_error="skip")
    assert no_loader_threads()


@pytest.mark.parametrize("end", ["close", "interrupt", "drop"])
def test_no_thread_is_left_when_an_epoch_is_left_half_way(end: str) -> None:
    stream = loader(Memory(), 4, workers=3).batches(0)
    next(stream)
    assert not no_loader_threads()
    if end == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    elif end == "close":
        stream.close()  # type: ignore[attr-defined]
    del stream
    assert no_loader_threads()


def test_no_more_is_decoded_ahead_than_agreed() -> None:
    faces = Memory()
    stream = loader(faces, 4, prefetch=2).batches(0)
    next(stream)
    time.sleep(0.1)
    assert len(faces.asked) == 4 * 3
    next(stream)
    time.sleep(0.1)
    assert len(faces.asked) == 4 * 4
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_the_source_hears_of_every_image_before_it_is_asked_for_it(shuffle: str) -> None:
    faces = Memory()
    heard: list[bool] = []
    encoded = faces.encoded
    faces.encoded = lambda i: (heard.append(i in faces.hinted), encoded(i))[1]  # type: ignore[method-assign]
    load(faces, shuffle=shuffle, block_size=5, window=2)
    assert heard == [True] * COUNT
    assert sorted(faces.hinted) == list(range(COUNT))
    if shuffle == "block":
        assert (np.diff(faces.hinted) != 1).sum() < 10


def test_images_of_a_source_without_files_are_taken_as_they_are_or_resized() -> None:
    pixels = MemoryImages(
        "pixels", np.arange(4) % 2, [ppm(np.full((32, 32, 3), 10 * i, np.uint8)) for i in range(4)]
    )
    for size in (32, 16, (32, 24)):
        (batch,) = load(pixels, 4, size=size)
        height, width = (size, size) if isinstance(size, int) else size
        assert batch.image_BHWC.shape == (4, height, width, 3)
        assert batch.image_BHWC[:, 0, 0, 0].tolist() == (10 * batch.index_B).tolist()


def test_too_little_data_for_a_batch_is_said() -> None:
    with pytest.raises(MissingDataError, match="toy at /toy has 50 images, too few for one batch"):
        loader(Memory(), 30, world_size=26)
    with pytest.raises(MissingDataError, match=r"trainer\.batch_size=51"):
        loader(Memory(), 51, drop_last=True)


def test_prepared_images_are_mirrored_normalised_and_channels_last() -> None:
    (batch,) = load(batch_size=COUNT)
    image_BCHW, label_B = prepare(batch, torch.device("cpu"), Preprocessing(size=32))
    assert image_BCHW.dtype == torch.float32
    assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(label_B, batch.label_B)
    assert 0 < batch.mirror_B.sum() < COUNT
    for i in range(COUNT):
        image = batch.image_BHWC[i].numpy()
        if batch.mirror_B[i]:
            image = image[:, ::-1]
        expected = (image.transpose(2, 0, 1).astype(np.float32) - 127.5) / 127.5
        assert np.allclose(image_BCHW[i].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 32, 32, 3), (5, 7, 9, 3), (1, 1, 1, 1), (4, 112, 96, 3)])
def test_mirroring_chooses_images_of_any_size(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    image_BHWC = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mirror_B = torch.arange(shape[0]) % 2 == 0
    expected = torch.stack([x.flip(1) if m else x for x, m in zip(image_BHWC, mirror_B, strict=True)])
    assert torch.equal(mirror_where(mirror_B, image_BHWC), expected)


def test_mirroring_can_be_switched_off() -> None:
    assert not any(batch.mirror_B.any() for batch in load(mirror=False))


def test_an_epoch_of_lfw_decodes_every_image_once(lfw_root: Path) -> None:
    pack = open_pack(lfw_root)
    seen = np.zeros(len(pack), int)
    for batch in loader(pack, 256, size=112, shuffle="block").batches(0):
        np.add.at(seen, batch.index_B, 1)
        assert np.array_equal(batch.label_B.numpy(), pack.label_N[batch.index_B])
        assert np.array_equal(batch.image_BHWC[0].numpy(), decode(pack.encoded(batch.index_B.item(0))))
    assert (seen == 1).all()
