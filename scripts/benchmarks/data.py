"""Opening indexes and packs, training images a second out of a pack, and seeks of a disk.

The indexes are generated: as many lines as MS1MV2's, with the offsets that images of its size give (--full:
as WebFace42M's too). The images are those of --pack; by default LFW where it is in $FACEREC_DATA or ./data,
else the ORL faces, 40 times over.
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
from _images import image_rows, set_rows, some_pack
from _reads import read_rows
from table import Row, best, in_processes, share_of_memory

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
    parser.add_argument("--only", choices=PARTS, help="this part alone")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="pack whose images are loaded")
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
            yield from read_rows(options.pack or some_pack(folder))
        if "set" in parts:
            yield from set_rows(options.bin, options.pack, folder)


# Indexes ---------------------------------------------------------------------------------------------------


def index_rows(folder: Path, lines: int, reference: bool) -> Iterator[Row]:
    """First opening, later openings, and memory of an index of that many lines."""
    path = folder / f"{lines}.idx"
    size_N = np.random.default_rng(0).integers(2000, 7000, lines) // 4 * 4
    write_index(path, RecordIndex.of(np.arange(lines), np.cumsum(size_N) - size_N))
    title = f"open an .idx of {lines:,} lines"

    def forget() -> None:
        for kept in folder.glob("*.cache"):
            kept.unlink()

    floor = best(lambda: np.fromstring(path.read_bytes(), np.int64, sep=" "), 2)
    common_s, common_mb = in_processes(_common_way, path)[0] if reference else (None, None)
    yield Row(f"{title} the first time", best(lambda: read_index(path), 3, forget), "s", floor, common_s)
    mapping_ms = 1e3 * best(lambda: _map(next(folder.glob("*.cache"))), 5)
    later_ms = 1e3 * best(lambda: read_index(path), 5)
    yield Row(f"{title} again", later_ms, "ms", mapping_ms, common_s and 1e3 * common_s)
    together = sum(in_processes(_our_memory, path, count=PROCESSES))
    common_all = common_mb and PROCESSES * common_mb
    yield Row(f"memory of it in {PROCESSES} processes together", together, "MB", 8e-6 * lines, common_all)
    forget()
    path.unlink()


def _map(path: Path) -> int:
    """Map a file and touch all of it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return int(np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE].max())


def _our_memory(path: Path) -> Callable[[], float]:
    before = share_of_memory()
    index = read_index(path)
    assert int(index.offset_N.max()) > 0, "every page has been touched"
    return lambda: share_of_memory() - before if len(index) else 0.0


def _common_way(path: Path) -> tuple[float, float]:
    """Seconds and MB of the loop that the common readers have: a dict and a list of Python numbers."""
    before = share_of_memory()
    start = time.perf_counter()
    offsets, keys = {}, []
    with path.open() as file:
        for line in file:
            fields = line.strip().split("\t")
            key = int(fields[0])
            offsets[key] = int(fields[1])
            keys.append(key)
    return time.perf_counter() - start, share_of_memory() - before


# Packs ----------------------------------------------------------------------------------------------------


def pack_rows(folder: Path, identities: int = 2_000, images_each: int = 100) -> Iterator[Row]:
    """Opening a pack of the InsightFace layout: labels first from the records, then from the cache."""
    path = folder / "train.rec"
    end = 1 + identities * images_each
    image = os.urandom(1000)
    with RecordWriter(path) as writer:
        writer.write(0, Record(2, (float(end), float(end + identities)), 0, 0, b""))
        for key in range(1, end):
            writer.write(key, Record(0, float((key - 1) // images_each), key, 0, image))
        for c in range(identities):
            borders = (float(1 + c * images_each), float(1 + (c + 1) * images_each))
            writer.write(end + c, Record(2, borders, end + c, 0, b""))
    read_index(path.with_suffix(".idx"))
    title = f"open a pack of {end - 1:,} images"
    with RecordReader(path) as reader:
        floor = best(lambda: np.frombuffer(reader.view, "<u4")[reader.offsets // 4 + 3])
        common = best(lambda: _common_labels(path, reader.offsets.tolist()), 1)

    def forget() -> None:
        path.with_name("train.rec.labels.cache").unlink(missing_ok=True)

    yield Row(
        f"{title} the first time",
        1e3 * best(lambda: open_pack(path), 3, forget),
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
    """Labels as the common readers get them: seek, read the whole record, unpack its header."""
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
