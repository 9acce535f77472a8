"""Part of the benchmark `data`: the offsets that an epoch reads in a pack, and how often a disk seeks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from table import Row

from facerec.loading.loader import Loader
from facerec.packs.pack import Pack, open_pack
from facerec.randomness import Positions

BATCH = 128
BLOCK_SIZE, WINDOW = 256, 16  # of a pack as small as LFW's; the settings' own suit millions of images


class Reads(NamedTuple):
    """What an epoch read.

    Attributes:
        touched: offsets of records as they were first touched, be it to read ahead or to decode.
        decoded: offsets of the records that were handed to the decoder, in the order of the threads.
        batches: positions of the images of each batch.
    """

    touched: list[int]
    decoded: list[int]
    batches: list[Positions]


def trace(pack: Pack, batch_size: int = BATCH, **order: Any) -> Reads:
    """Load an epoch of `pack`, recording what is asked of its file; `order` is for the `Loader`."""
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
    """How often the next record to be read is not the one that lies behind the last."""
    row = np.searchsorted(np.sort(pack.offset_N), offsets)
    return 1 + int((np.diff(row) != 1).sum())


def blocks_of(batches: Sequence[Positions], block_size: int) -> float:
    """On how many blocks a batch draws, on average."""
    return float(np.mean([len(np.unique(index_B // block_size)) for index_B in batches]))


def read_rows(root: Path) -> Iterator[Row]:
    """Block order against full: floor is one seek a block."""
    pack = open_pack(root)
    full = trace(pack, shuffle="full")
    block = trace(pack, shuffle="block", block_size=BLOCK_SIZE, window=WINDOW)
    assert sorted(block.decoded) == sorted(full.decoded) == sorted(pack.offset_N.tolist())
    per_mille = 1000 / len(pack)
    common = per_mille * seeks(pack, full.touched)
    title = f"{len(pack):,} images in blocks of {BLOCK_SIZE}, {WINDOW} mixed"
    many = per_mille * seeks(pack, block.touched)
    yield Row(f"{title}: read 1,000 images", many, "seeks", 1000 / BLOCK_SIZE, common)
    drawn, at_random = (blocks_of(reads.batches, BLOCK_SIZE) for reads in (block, full))
    yield Row(f"{title}: a batch of {BATCH} draws on", drawn, "blocks", None, at_random)
