"""Number arrays worked out once from a source file, kept beside it, and memory-mapped by every later process.

A cache file is 8 bytes of magic, `uint32` header length, `uint32` CRC-32 of the header, the header (JSON:
kind, stamps of the sources, a few plain values, and name, type, place and length of every array), then the
arrays, each at a multiple of 64 bytes. It is valid while every source has the size, modification time and
ends of its stamp. Whatever else is found under its name (another program's file, an older layout, flipped
bytes) is no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facerec.errors import StorageError
from facerec.files import replacing

_log = logging.getLogger(__name__)
_MAGIC = b"FRcache1"
_TYPES = ("<i4", "<i8")
_ALIGN = 64
_LONGEST_HEADER = 1 << 16
_END = 1 << 14  # bytes of a file's beginning and end that its stamp holds; copying keeps size and time
_INVALID = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
)  # of a file that is no cache


class Stamp(NamedTuple):
    """What tells a source file from another: size in bytes, modification time in ns, hash of both ends."""

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
    """What a valid cache file holds: read-only, memory-mapped arrays, and plain values beside them."""

    path: Path
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


def writable(folder: Path) -> bool:
    """Whether files may be put into `folder`; its permission bits bind root too, so read-only data stays."""
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def places(source: Path, kind: str) -> list[Path]:
    """Where the cache of `kind` for `source` may lie: beside it, else in the user's cache folder."""
    source = source.absolute()
    name = f"{source.name}.{kind}.cache"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facerec"
    return [source.with_name(name), user / f"{hashlib.sha256(bytes(source)).hexdigest()[:16]}-{name}"]


def load(source: Path, kind: str, stamps: Sequence[Stamp]) -> Cached | None:
    """The cache of `kind` for `source` made under these `stamps`, or None where none is valid."""
    for place in places(source, kind):
        with contextlib.suppress(*_INVALID):
            return _read(place, kind, stamps)
    return None


def store(
    source: Path, kind: str, stamps: Sequence[Stamp], arrays: Mapping[str, np.ndarray], **values: Any
) -> Cached | None:
    """Write a cache under a temporary name, rename and map it; None where no folder takes it."""
    place = places(source, kind)
    for target in place:
        if target is place[0] and not writable(target.parent):
            continue
        try:
            _write(target, kind, stamps, arrays, values)
            return _read(target, kind, stamps)
        except (StorageError, *_INVALID) as problem:
            _log.debug("no cache at %s: %s", target, problem)
    return None


def _write(
    target: Path, kind: str, stamps: Sequence[Stamp], arrays: Mapping[str, np.ndarray], values: dict[str, Any]
) -> None:
    plan: list[list[Any]] = []
    offset = 0
    for name, array in arrays.items():
        small = np.ascontiguousarray(array, dtype=f"<i{array.dtype.itemsize}")
        plan.append([name, small.dtype.str, offset, len(small), _checksum(small)])
        offset += -(-small.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"kind": kind, "stamps": stamps, "values": values, "arrays": plan}).encode()
    body = _body(len(header))
    with replacing(target, durable=False) as file:
        file.write(_MAGIC + len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little"))
        file.write(header)
        for (_, dtype, at, _, _), array in zip(plan, arrays.values(), strict=True):
            file.seek(body + at)
            file.write(np.ascontiguousarray(array, dtype=dtype).data)
        file.truncate(body + offset)


def _read(place: Path, kind: str, stamps: Sequence[Stamp]) -> Cached:
    """Map and check one cache file; anything that is not in order raises."""
    with place.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    length = int.from_bytes(view[8:12], "little")
    if (
        view[:8] != _MAGIC
        or length > _LONGEST_HEADER
        or zlib.crc32(view[16 : 16 + length]) != int.from_bytes(view[12:16], "little")
    ):
        raise ValueError("not a cache file")
    header = json.loads(bytes(view[16 : 16 + length]))
    if header["kind"] != kind or [tuple(one) for one in header["stamps"]] != [tuple(one) for one in stamps]:
        raise ValueError("made for something else")
    arrays = {}
    for name, dtype, offset, count, checksum in header["arrays"]:
        if dtype not in _TYPES:
            raise ValueError(f"type {dtype}")
        array = np.frombuffer(view, dtype=dtype, count=count, offset=_body(length) + offset)
        if _checksum(array) != checksum:
            raise ValueError(f"array {name} is damaged")
        arrays[name] = array
    return Cached(place, arrays, header["values"])


def _body(header_length: int) -> int:
    """Where the arrays begin."""
    return -(-(16 + header_length) // _ALIGN) * _ALIGN


def _checksum(array: np.ndarray) -> int:
    """Sum modulo 2^64: a few ms for 50 MB, and finds flipped bits and pages that were never written."""
    return int(array.sum(dtype=np.int64)) & (2**64 - 1)
