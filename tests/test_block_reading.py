"""Disk accesses of an epoch: the offsets that the loader reads in a pack, in block order and in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.packs.pack import Pack, open_pack
from facerec.packs.recordio import Record, RecordWriter
from tests.making import image

COUNT, BLOCK, WINDOW, BATCH = 6000, 100, 10, 64


class Reads(NamedTuple):
    """Offsets in the order they were first touched, and decoded; positions of the images of each batch."""

    touched: list[int]
    decoded: list[int]
    batches: list[np.ndarray]

    @property
    def seeks(self) -> int:
        """How often the next record touched is not the one behind the previous."""
        row = np.searchsorted(np.sort(self.decoded), self.touched)
        return 1 + int((np.diff(row) != 1).sum())


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder, encoded = tmp_path_factory.mktemp("blocks"), image(0, (16, 16))
    with RecordWriter(folder / "train.rec") as writer:
        for key in range(COUNT):
            writer.write(key, Record(0, float(key // 10), key, 0, encoded))
    return open_pack(folder)


def trace(pack: Pack, shuffle: str, **given: Any) -> Reads:
    """Load an epoch of `pack`, and record the reads of its file."""
    touched: dict[int, None] = {}
    decoded: list[int] = []
    prefetch, payload_at = pack.reader.prefetch, pack.reader.payload_at

    def recorded_prefetch(offsets: Sequence[int]) -> None:
        touched.update(dict.fromkeys(offsets))
        prefetch(offsets)

    def recorded_payload(offset: int) -> bytes | memoryview:
        touched.setdefault(offset)
        decoded.append(offset)
        return payload_at(offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.reader, "prefetch", recorded_prefetch)
        patch.setattr(pack.reader, "payload_at", recorded_payload)
        order = {"shuffle": shuffle, "block_size": BLOCK, "window": WINDOW}
        loader = Loader(pack, BATCH, DataSettings(drop_last=False, size=16, **order, **given), seed=1)
        batches = [batch.index_B for batch in loader.batches(0)]
    return Reads(list(touched), decoded, batches)


def test_block_order_seeks_less_by_the_size_of_a_block(pack: Pack) -> None:
    assert trace(pack, "full").seeks > 0.99 * COUNT
    # a seek a block; fewer where neighbours meet
    assert 0.7 * COUNT / BLOCK < trace(pack, "block").seeks <= COUNT / BLOCK
    assert trace(pack, "none").seeks == 1


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_an_epoch_reads_every_record_once(pack: Pack, shuffle: str) -> None:
    epoch = trace(pack, shuffle, workers=3)
    assert sorted(epoch.decoded) == sorted(epoch.touched) == pack.offset_N.tolist()
    assert np.array_equal(np.sort(np.concatenate(epoch.batches)), np.arange(COUNT))


def test_neighbours_in_a_batch_come_from_many_blocks(pack: Pack) -> None:
    batches = trace(pack, "block").batches
    assert np.mean([len(np.unique(index_B // BLOCK)) for index_B in batches]) > 0.95 * WINDOW
    following = np.concatenate([np.diff(index_B) == 1 for index_B in batches])
    assert following.mean() < 0.005  # one in block·window is expected
