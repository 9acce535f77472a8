"""The `.lst` beside a pack: ``key<TAB>label<TAB>relative path``, reached by key without holding its lines."""

from __future__ import annotations

import math
import mmap
from array import array
from pathlib import Path

import numpy as np

from facerec.errors import DamagedDataError
from facerec.packs.text import is_number, stays_inside, wrong_line

_HINT = "correct that line, or move the file away to do without"


class Listing:
    """The names in a `.lst`, 16 bytes of memory per line.

    Args:
        path: the file; of two lines of one key the last counts.

    Raises:
        DamagedDataError: naming the line that is not key, label, path, or whose path is absolute or leads out
            of its folder, for files will be written by these names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        keys, offsets = array("q"), array("q")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            file.seek(0)
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    key, _ = _fields(path, number, line)
                    keys.append(key)
                    offsets.append(offset)
                offset += len(line)
        order = np.argsort(np.frombuffer(keys, np.int64), kind="stable")
        self._key_N = np.frombuffer(keys, np.int64)[order]
        self._offset_N = np.frombuffer(offsets, np.int64)[order]

    def name(self, key: int) -> str | None:
        """The relative path of the image of `key`, None where there is no line for it."""
        row = int(np.searchsorted(self._key_N, key, side="right")) - 1
        if row < 0 or int(self._key_N[row]) != key:
            return None
        begin = int(self._offset_N[row])
        end = self._text.find(b"\n", begin)
        return _fields(self.path, row + 1, self._text[begin : end if end >= 0 else len(self._text)])[1]


def image_name(listing: Listing | None, key: int, label: object, encoded: bytes | memoryview) -> str:
    """The relative path of an image of a pack: of its `.lst`, else ``label/key.jpg``."""
    name = None if listing is None else listing.name(key)
    return name or f"{label}/{key}{_ending(encoded)}"


def _ending(encoded: bytes | memoryview) -> str:
    """The ending of an image file, by its first bytes."""
    start = bytes(encoded[:12])
    for ending, magic in ((".png", b"\x89PNG"), (".gif", b"GIF8"), (".bmp", b"BM")):
        if start.startswith(magic):
            return ending
    if start[8:12] == b"WEBP":
        return ".webp"
    return ".pgm" if start[:2] in (b"P5", b"P2") else ".jpg"


def _fields(path: Path, number: int, line: bytes) -> tuple[int, str]:
    """Key and path of one line."""
    fields = line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")
    try:
        right = is_number(fields[0], 18) and len(fields) > 2 and math.isfinite(float(fields[1]))
    except (ValueError, IndexError):
        right = False
    name = fields[-1]
    if not right or not name:
        raise wrong_line(path, number, "\t".join(fields), f"key<TAB>label<TAB>path; {_HINT}")
    if not stays_inside(name):
        raise DamagedDataError(f"{path}, line {number}: {name!r:.80} leads out of its folder; {_HINT}")
    return int(fields[0]), name
