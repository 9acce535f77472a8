"""Opening indexes and packs, images per second from a pack to the model, and seeks of a disk.

The indexes are generated: as many lines as MS1MV2 has, with the offsets of images of its size (--full:
WebFace42M, too). The images are those of --pack; by default LFW if it is in $FACEREC_DATA or ./data, else
the ORL faces, 40 times.
"""

import argparse
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from _images import default_pack, image_rows, set_rows
from _reads import read_rows
from table import Row, best, in_processes, proportional_memory

from facerec.packs.index import RecordIndex, read_index, write_index
from facerec.packs.pack import open_pack
from facerec.packs.recordio import Record, RecordReader, RecordWriter

MS1MV2, WEBFACE42M = 5_822_653, 42_474_558
PROCESSES = 4
PARTS = ("index", "pack", "images", "reads", "set")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full", action="store_true", help="also open an index of 42.5 million lines (1.2 GB)"
    )
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="pack to load images from")
    parser.add_argument(
        "--bin", type=Path, metavar="FILE", help="verification set; default: the pack's first"
    )


def rows(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="facerec-benchmark-") as name:
        folder = Path(name)
        parts = PARTS if options.only is None else (options.only,)
        if "index" in parts:
            yield from index_rows(folder, MS1MV2, reference=True)
            if options.full:
                yield from index_rows(folder, WEBFACE42M, reference=False)
        if "pack" in parts:
            yield from pack_rows(folder)
        if "images" in parts:
            yield from image_rows(options.pack, folder)
        if "reads" in parts:
            yield from read_rows(options.pack or default_pack(folder))
        if "set" in parts:
            yield from set_rows(options.bin, options.pack, folder)


# Indexes ---------------------------------------------------------------------------------------------------


def index_rows(folder: Path, lines: int, reference: bool) -> Iterator[Row]:
    """Measure the first opening, later ones, and the memory of an index of that many lines."""
    path = folder / f"{lines}.idx"
    size_N = np.random.default_rng(0).integers(2000, 7000, lines) // 4 * 4
    write_index(path, RecordIndex.of(np.arange(lines), np.cumsum(size_N) - size_N))
    title = f"open an .idx of {lines:,} lines"

    def remove_caches() -> None:
        for cached in folder.glob("*.cache"):
            cached.unlink()

    floor = best(lambda: np.fromstring(path.read_bytes(), np.int64, sep=" "), 2)
    common_s, common_mb = in_processes(_common_way, path)[0] if reference else (None, None)
    yield Row(
        f"{title} the first time", best(lambda: read_index(path), 3, remove_caches), "s", floor, common_s
    )
    mapping_ms = 1e3 * best(lambda: _map(next(folder.glob("*.cache"))), 5)
    later_ms = 1e3 * best(lambda: read_index(path), 5)
    yield Row(f"{title} again", later_ms, "ms", mapping_ms, common_s and 1e3 * common_s)
    total = sum(in_processes(_our_memory, path, count=PROCESSES))
    common_all = common_mb and PROCESSES * common_mb
    yield Row(f"memory of it in {PROCESSES} processes together", total, "MB", 8e-6 * lines, common_all)
    remove_caches()
    path.unlink()


def _map(path: Path) -> int:
    """Map a file and touch all of it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return int(np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE].max())


def _our_memory(path: Path) -> Callable[[], float]:
    before = proportional_memory()
    index = read_index(path)
    assert int(index.offset_N.max()) > 0, "touches every page"
    return lambda: proportional_memory() - before if len(index) else 0.0


def _common_way(path: Path) -> tuple[float, float]:
    """Return the seconds and MB of the common readers' loop: a dict and a list of Python numbers."""
    before = proportional_memory()
    start = time.perf_counter()
    offsets, keys = {}, []
    with path.open() as file:
        for line in file:
            fields = line.strip().split("\t")
            key = int(fields[0])
            offsets[key] = int(fields[1])
            keys.append(key)
    return time.perf_counter() - start, proportional_memory() - before


# Packs ----------------------------------------------------------------------------------------------------


def pack_rows(folder: Path, identities: int = 2_000, per_identity: int = 100) -> Iterator[Row]:
    """Open a pack of the InsightFace layout: labels from the records at first, later from the cache."""
    path = folder / "train.rec"
    end = 1 + identities * per_identity
    image = os.urandom(1000)
    with RecordWriter(path) as writer:
        writer.write(0, Record(2, (float(end), float(end + identities)), 0, 0, b""))
        for key in range(1, end):
            writer.write(key, Record(0, float((key - 1) // per_identity), key, 0, image))
        for c in range(identities):
            borders = (float(1 + c * per_identity), float(1 + (c + 1) * per_identity))
            writer.write(end + c, Record(2, borders, end + c, 0, b""))
    read_index(path.with_suffix(".idx"))
    title = f"open a pack of {end - 1:,} images"
    with RecordReader(path) as reader:
        floor = best(lambda: np.frombuffer(reader.view, "<u4")[reader.offsets // 4 + 3])
        common = best(lambda: _common_labels(path, reader.offsets.tolist()), 1)

    def remove_cache() -> None:
        path.with_name("train.rec.labels.cache").unlink(missing_ok=True)

    yield Row(
        f"{title} the first time",
        1e3 * best(lambda: open_pack(path), 3, remove_cache),
        "ms",
        1e3 * floor,
        1e3 * common,
    )
    yield Row(f"{title} again", 1e3 * best(lambda: open_pack(path), 5), "ms", None, 1e3 * common)
    with RecordReader(path) as reader:
        offsets = np.random.default_rng(0).permutation(reader.offsets).tolist()
        seconds = best(lambda: [reader.payload_at(offset) for offset in offsets])
        common = best(lambda: _common_reads(path, offsets), 1)
    count = len(offsets)
    yield Row("take an encoded image by position", 1e6 * seconds / count, "µs", None, 1e6 * common / count)


def _common_labels(path: Path, offsets: list[int]) -> list[float]:
    """Read labels as the common readers do: seek, read the full record, unpack its header."""
    labels = []
    with path.open("rb") as file:
        for offset in offsets:
            labels.append(struct.unpack_from("<IfQQ", _record(file, offset))[1])
    return labels


def _common_reads(path: Path, offsets: list[int]) -> None:
    with path.open("rb") as file:
        for offset in offsets:
            record = _record(file, offset)
            struct.unpack_from("<IfQQ", record)
            record[24:]


def _record(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    _, word = struct.unpack("<II", file.read(8))
    return file.read(word & 0x1FFFFFFF)
