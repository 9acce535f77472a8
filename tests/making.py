"""Command lines of facerec-data, images, damage and reports for the tests of packs in the making."""

from __future__ import annotations

import csv
import io
import os
import resource
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from facerec.cli.data import run


def data(*words: object) -> int:
    """Run a command line of facerec-data; its exit status."""
    return run([*map(str, words)])


def image(
    seed: int,
    size: tuple[int, int] = (112, 112),
    kind: str = "JPEG",
    orientation: int = 1,
    mode: str = "RGB",
    **options: object,
) -> bytes:
    """A smooth image of (width, height) pixels, as an encoded file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    if orientation != 1:
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def overwrite(path: Path, offset: int, wrong: bytes) -> None:
    """Damage a file without changing its time, as a bad disk does."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(wrong)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def report(out: Path) -> list[list[str]]:
    with (out / "report.csv").open(newline="") as file:
        return [row[:3] for row in csv.reader(file)][1:]


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file have more bytes; the kernel refuses the write as for a full disk."""
    limit, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def little(most: int = 5_000_000) -> Iterator[None]:
    """Assert that the body takes fewer bytes of memory than that, whatever a small file claims."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


# Bytes of `insightface_layout.rec` that are changed, where it is cut off, and whether its index is there.
DAMAGE: dict[str, st.SearchStrategy[Any]] = {
    "changes": st.lists(st.tuples(st.integers(0, 72_211), st.binary(min_size=1, max_size=9)), max_size=4),
    "cut": st.one_of(st.none(), st.integers(0, 72_211)),
    "indexed": st.booleans(),
}


def damaged_pack(
    recordio_files: Path, folder: Path, changes: list[tuple[int, bytes]], cut: int | None, indexed: bool
) -> Path:
    """A copy of the pack with `DAMAGE`."""
    rec = bytearray((recordio_files / "insightface_layout.rec").read_bytes())
    for at, wrong in changes:
        rec[at : at + len(wrong)] = wrong
    (folder / "a.rec").write_bytes(rec[:cut])
    if indexed:
        shutil.copy(recordio_files / "insightface_layout.idx", folder / "a.idx")
    return folder / "a.rec"
