"""Part of the benchmark `data`: the offsets that an epoch reads from a pack, and the seeks of a disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from table import Row

from facerec.loading.loader import Loader
from facerec.packs.pack import Pack, open_pack
from facerec.randomness import Positions

BATCH = 128
BLOCK_SIZE, WINDOW = 256, 16  # for a pack as small as LFW; the defaults suit millions of images


class Reads(NamedTuple):
    """The reads of an epoch.

    Attributes:
        touched: offsets of records in the order they were first touched, to read ahead or to decode.
        decoded: offsets of the records that were decoded, in the order of the threads.
        batches: positions of the images of each batch.
    """

    touched: list[int]
    decoded: list[int]
    batches: list[Positions]


def trace(pack: Pack, batch_size: int = BATCH, **order: Any) -> Reads:
    """Load an epoch of `pack` and record the reads of its file; `order` goes to the `Loader`."""
    touched: dict[int, None] = {}
    decoded: list[int] = []
    reader = pack.reader
    prefetch, payload_at = reader.prefetch, reader.payload_at

    def recorded_prefetch(offsets: Sequence[int], *length: int) -> None:
        touched.update(dict.fromkeys(offsets))
        prefetch(offsets, *length)

    def recorded_payload(offset: int) -> bytes | memoryview:
        touched.setdefault(offset)
        decoded.append(offset)
        return payload_at(offset)

    vars(reader).update(prefetch=recorded_prefetch, payload_at=recorded_payload)
    try:
        loader = Loader(pack, batch_size, seed=1, drop_last=False, **order)
        batches = [batch.index_B for batch in loader.batches(0)]
    finally:
        del reader.prefetch, reader.payload_at
    return Reads(list(touched), decoded, batches)


def seeks(pack: Pack, offsets: Sequence[int]) -> int:
    """Count how often the next record read is not the one behind the previous."""
    row = np.searchsorted(np.sort(pack.offset_N), offsets)
    return 1 + int((np.diff(row) != 1).sum())


def blocks_per_batch(batches: Sequence[Positions], block_size: int) -> float:
    """Return the mean number of blocks that a batch draws on."""
    return float(np.mean([len(np.unique(index_B // block_size)) for index_B in batches]))


def read_rows(root: Path) -> Iterator[Row]:
    """Compare block order with full; the floor is one seek per block."""
    pack = open_pack(root)
    full = trace(pack, shuffle="full")
    block = trace(pack, shuffle="block", block_size=BLOCK_SIZE, window=WINDOW)
    assert sorted(block.decoded) == sorted(full.decoded) == sorted(pack.offset_N.tolist())
    per_mille = 1000 / len(pack)
    common = per_mille * seeks(pack, full.touched)
    title = f"{len(pack):,} images in blocks of {BLOCK_SIZE}, {WINDOW} mixed"
    many = per_mille * seeks(pack, block.touched)
    yield Row(f"{title}: read 1,000 images", many, "seeks", 1000 / BLOCK_SIZE, common)
    in_blocks, in_full = (blocks_per_batch(reads.batches, BLOCK_SIZE) for reads in (block, full))
    yield Row(f"{title}: a batch of {BATCH} draws on", in_blocks, "blocks", None, in_full)
