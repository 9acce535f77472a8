"""Disk accesses of an epoch: the offsets that the loader reads in a pack, in block order and in full."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from facerec.packs.pack import Pack, open_pack
from facerec.packs.recordio import Record, RecordWriter

COUNT, BLOCK, WINDOW, BATCH = 6000, 100, 10, 64
ORDER = {"size": 16, "block_size": BLOCK, "window": WINDOW}


@pytest.fixture(scope="module")
def reads() -> ModuleType:
    """The tracing of `scripts/benchmark data`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "benchmarks"))
    try:
        return import_module("_reads")
    finally:
        del sys.path[0]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("blocks")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "gray").save(buffer, "JPEG")
    with RecordWriter(folder / "train.rec") as writer:
        for key in range(COUNT):
            writer.write(key, Record(0, float(key // 10), key, 0, buffer.getvalue()))
    return open_pack(folder)


def test_block_order_seeks_less_by_the_size_of_a_block(reads: ModuleType, pack: Pack) -> None:
    full = reads.trace(pack, BATCH, shuffle="full", **ORDER)
    block = reads.trace(pack, BATCH, shuffle="block", **ORDER)
    stored = reads.trace(pack, BATCH, shuffle="none", **ORDER)
    many = reads.seeks(pack, full.touched)
    assert many > 0.99 * COUNT
    assert reads.seeks(pack, block.touched) <= COUNT / BLOCK  # a seek a block; fewer where neighbours meet
    assert reads.seeks(pack, block.touched) > 0.7 * COUNT / BLOCK
    assert reads.seeks(pack, stored.touched) == 1


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_an_epoch_reads_every_record_once(reads: ModuleType, pack: Pack, shuffle: str) -> None:
    epoch = reads.trace(pack, BATCH, shuffle=shuffle, workers=3, **ORDER)
    assert sorted(epoch.decoded) == sorted(epoch.touched) == pack.offset_N.tolist()
    assert np.array_equal(np.sort(np.concatenate(epoch.batches)), np.arange(COUNT))


def test_neighbours_in_a_batch_come_from_many_blocks(reads: ModuleType, pack: Pack) -> None:
    block = reads.trace(pack, BATCH, shuffle="block", **ORDER)
    assert reads.blocks_per_batch(block.batches, BLOCK) > 0.95 * WINDOW
    following = np.concatenate([np.diff(index_B) == 1 for index_B in block.batches])
    assert following.mean() < 0.005  # one in block·window is expected
