"""Number arrays worked out once from a source file, kept beside it, and memory-mapped by every later process.

A cache file is a row of `.npy` arrays: the first holds JSON (kind, stamps of the sources, a few plain values,
sums of the arrays), led by its CRC-32. It is valid while every source has the size, modification time and
ends of its stamp. Whatever else is found under its name is no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from facerec.errors import StorageError
from facerec.files import replacing, why_not_writable

_log = logging.getLogger(__name__)
_END = 1 << 14  # bytes of a file's beginning and end that its stamp holds; copying keeps size and time


class Stamp(NamedTuple):
    """Identity of a source file: size in bytes, modification time in ns, hash of both ends."""

    size: int
    mtime_ns: int
    ends: str


def stamp(path: Path) -> Stamp:
    """The stamp of `path` as it is now; (−1, −1, "") where there is no such file."""
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(file.read(_END))
            file.seek(max(status.st_size - _END, 0))
            digest.update(file.read(_END))
    except OSError:
        return Stamp(-1, -1, "")
    return Stamp(status.st_size, status.st_mtime_ns, digest.hexdigest()[:16])


class Cached(NamedTuple):
    """Read-only, memory-mapped arrays, and plain values beside them."""

    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


def paths(source: Path, kind: str) -> list[Path]:
    """Return the paths a cache of `kind` may have: beside `source`, else in the user's cache folder."""
    source = source.absolute()
    name = f"{source.name}.{kind}.cache"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facerec"
    return [source.with_name(name), user / f"{hashlib.sha256(bytes(source)).hexdigest()[:16]}-{name}"]


def load(source: Path, kind: str, stamps: Sequence[Stamp]) -> Cached | None:
    """The cache of `kind` for `source` made under these `stamps`, or None where none is valid."""
    for path in paths(source, kind):
        # NumPy and JSON meet another program's file with whatever exception the wrong byte happens to cause.
        with contextlib.suppress(Exception):
            return _read(path, kind, stamps)
    return None


def store(
    source: Path, kind: str, stamps: Sequence[Stamp], arrays: Mapping[str, np.ndarray], **values: Any
) -> Cached | None:
    """Write a cache, and map it; None where no folder takes it."""
    about = {"kind": kind, "stamps": stamps, "values": values}
    about["sums"] = {name: _sum(array) for name, array in arrays.items()}
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 64 + 56)  # the arrays begin at multiples of 64 bytes
    for path in paths(source, kind):
        if path.parent == source.absolute().parent and why_not_writable(path.parent):
            continue
        try:
            with replacing(path, durable=False) as file:
                np.save(file, np.frombuffer(b"%08x" % zlib.crc32(text) + text, np.uint8))
                for array in arrays.values():
                    np.save(file, array)
            return _read(path, kind, stamps)
        except (StorageError, OSError, ValueError) as problem:
            _log.debug("no cache at %s: %s", path, problem)
    return None


def _read(path: Path, kind: str, stamps: Sequence[Stamp]) -> Cached:
    """Map and check a cache file; anything that is not in order raises."""
    with path.open("rb") as file:
        head = _mapped(file).tobytes()
        about = json.loads(head[8:])
        if int(head[:8], 16) != zlib.crc32(head[8:]):
            raise ValueError("damaged")
        if about["kind"] != kind or about["stamps"] != [list(stamp) for stamp in stamps]:
            raise ValueError("made for something else")
        arrays = {name: _mapped(file) for name in about["sums"]}
    if {name: _sum(array) for name, array in arrays.items()} != about["sums"]:
        raise ValueError("an array is damaged")
    return Cached(arrays, about["values"])


def _mapped(file: BinaryIO) -> np.ndarray:
    """The `.npy` array that begins here; the next one begins at its end."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    begin = file.tell()
    array = np.memmap(file, dtype, "r", begin, shape)
    file.seek(begin + array.nbytes)
    return np.asarray(array)


def _sum(array: np.ndarray) -> int:
    """Sum modulo 2^64: a few ms for 50 MB, and finds flipped bits and pages that were never written."""
    return int(array.sum(dtype=np.int64)) & (2**64 - 1)
