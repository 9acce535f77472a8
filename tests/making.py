"""Command lines of facerec-data, images, damage and reports for the tests of packs in the making."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from facerec.cli.data import run


def data(*words: object) -> int:
    """Run a command line of facerec-data; its exit status."""
    return run([*map(str, words)])


def image(seed: int, size: tuple[int, int] = (112, 112), kind: str = "JPEG", orientation: int = 1) -> bytes:
    """A smooth image of (width, height) pixels, as an encoded file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
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
