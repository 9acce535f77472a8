"""The index of a `.rec` file: keys to byte offsets, opened in milliseconds, rebuilt where missing or stale.

A text `.idx` is parsed once and kept as a memory-mapped cache (`packs.cache`), whose pages all processes
share: 8 bytes per record where keys are dense (first, first + 1, …), 16 or 24 otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, StorageError, counted
from facerec.files import replacing, why_not_writable
from facerec.packs import cache, framing
from facerec.packs.text import read_table

_log = logging.getLogger(__name__)
_SAMPLES = 32  # records looked at to tell whether an index belongs to its .rec
_HIGHEST = 2**63 - 1


class RecordIndex:
    """Keys and byte offsets of N records, in the order of the index.

    Args:
        arrays: ``offset``; ``key`` where keys are not dense, in growing order; ``order``, the row of each
            of these, where the index has them in another order.
        first: the first key where row r holds key first + r throughout, else None.
        origin: how the index was obtained: ``parsed``, ``cached``, ``rebuilt``.
        shared: True where the numbers lie in a cache file, so that another process maps them instead of
            being sent them.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], first: int | None, origin: str, shared: bool = False
    ) -> None:
        self.arrays, self.first, self.origin, self.shared = arrays, first, origin, shared
        self.offset_N = arrays["offset"]
        self._sorted_N = arrays.get("key", np.empty(0, np.int64))
        self._order_N = arrays.get("order")
        self._key_N: np.ndarray | None = None

    @classmethod
    def of(cls, key_N: np.ndarray, offset_N: np.ndarray, origin: str = "parsed") -> RecordIndex:
        """The index of these keys and offsets; raises ValueError carrying the first key that occurs twice."""
        arrays = {"offset": np.ascontiguousarray(offset_N)}
        step_N = np.diff(key_N)
        if (step_N == 1).all():
            return cls(arrays, int(key_N[0]) if len(key_N) else 0, origin)
        if (step_N <= 0).any():
            order_N = np.argsort(key_N, kind="stable")
            key_N = key_N[order_N]
            twice = np.flatnonzero(key_N[1:] == key_N[:-1])
            if len(twice):
                raise ValueError(int(key_N[twice[0]]))
            arrays["order"] = order_N
        arrays["key"] = np.ascontiguousarray(key_N)
        return cls(arrays, None, origin)

    def __len__(self) -> int:
        return len(self.offset_N)

    @property
    def keys(self) -> np.ndarray:
        """int64 keys in the order of the index; made on demand where keys are dense."""
        if self._key_N is None:
            key_N = self._sorted_N
            if self.first is not None:
                key_N = np.arange(self.first, self.first + len(self), dtype=np.int64)
            elif self._order_N is not None:
                key_N = np.empty_like(key_N)
                key_N[self._order_N] = self._sorted_N
            key_N.flags.writeable = False
            self._key_N = key_N
        return self._key_N

    def row(self, key: int) -> int:
        """The row of `key`; raises KeyError."""
        number = operator.index(key)
        if self.first is not None:
            if 0 <= number - self.first < len(self.offset_N):
                return number - self.first
            raise KeyError(key)
        rank = self._below(number)
        if rank == len(self) or self._sorted_N.item(rank) != number:
            raise KeyError(key)
        return rank if self._order_N is None else self._order_N.item(rank)

    def _below(self, key: int) -> int:
        """The number of keys below `key`, where keys are not dense."""
        return len(self) if key > _HIGHEST else int(np.searchsorted(self._sorted_N, max(key, 0)))

    def rows_between(self, low: int, high: int) -> np.ndarray:
        """Rows of all keys from `low` up to but not including `high`, in the order of their keys."""
        if self.first is not None:
            begin, end = (min(max(key - self.first, 0), len(self)) for key in (low, high))
        else:
            begin, end = self._below(low), self._below(high)
        return np.arange(begin, end) if self._order_N is None else self._order_N[begin:end]

    def keys_at(self, row_K: np.ndarray) -> np.ndarray:
        """The int64 keys of rows, without making those of all others."""
        return self.keys[row_K] if self.first is None else np.asarray(row_K, np.int64) + self.first

    def key_at(self, offset: int) -> int | None:
        """The key of the record that begins at `offset`, for messages: looks through all of them."""
        rows = np.flatnonzero(self.offset_N == offset)
        return self.keys_at(rows[:1]).item() if len(rows) else None


def default_path(rec_path: Path) -> Path:
    """Return the default path of the index of a `.rec`."""
    return rec_path.with_suffix(".idx")


def read_index(idx_path: Path) -> RecordIndex:
    """The index in the text file `idx_path`, from its cache where that is valid; else parsed, and cached.

    Raises:
        MissingDataError: where there is no such file.
        DamagedDataError: naming file and line, where a line is malformed or a key occurs twice.
    """
    known = cache.stamp(idx_path)
    found = _cached(idx_path, "index", known)
    if found is not None:
        return found
    expected = "key<TAB>offset; remove that line, or the file, and have it rebuilt with `facerec-data index`"
    try:
        key_N, offset_N = read_table(idx_path, (_HIGHEST, _HIGHEST), expected).T
        index = RecordIndex.of(key_N, offset_N)
    except OSError as problem:
        raise MissingDataError(
            f"{idx_path}: {problem.strerror}; give the .idx that belongs to the .rec"
        ) from None
    except ValueError as twice:
        raise DamagedDataError(_twice(idx_path, twice.args[0])) from None
    return _shared(idx_path, "index", known, index)


def open_index(rec_path: Path, view: memoryview, idx_path: Path) -> RecordIndex:
    """The index of the `.rec` mapped in `view`: read from `idx_path`, or rebuilt where missing or stale.

    A rebuilt index goes to `idx_path` (a stale one is kept as ``….idx.old``), or into the user's cache folder
    where the data folder is read-only; a warning says so. Its keys are 0, 1, 2, … in file order, as the
    original tools number them.

    Raises:
        DamagedDataError: where the `.idx` is malformed, or must be rebuilt and the `.rec` cannot be walked.
    """
    trouble = "there is none"
    if idx_path.is_file():
        index = read_index(idx_path)
        misfit = _misfit(index, view, rec_path, idx_path)
        if misfit is None:
            return index
        if not len(view):
            raise DamagedDataError(
                f"{rec_path}: is empty, but {idx_path.name} lists {counted(len(index), 'record')}"
            )
        trouble = misfit
    known = cache.stamp(rec_path)
    rebuilt = _cached(rec_path, "scan", known)
    if rebuilt is not None:
        _log.warning("%s: %s; using the index rebuilt earlier", idx_path, trouble)
        return rebuilt
    try:
        index = scan(view, f"indexing {rec_path.name}")
    except framing.Broken as broken:
        raise DamagedDataError(
            f"{rec_path}: offset {broken.offset}: {broken.reason}; and its index {idx_path.name} cannot be "
            f"used ({trouble}). Get the pack again, or see what is left: `facerec-data verify {rec_path}`"
        ) from None
    if not why_not_writable(idx_path.parent):
        with contextlib.suppress(StorageError):
            write_index(idx_path, index, keep_old=True)
            _log.warning(
                "%s: %s; rebuilt it from %s: %s",
                *(idx_path, trouble, rec_path.name, counted(len(index), "record")),
            )
            return _shared(idx_path, "index", cache.stamp(idx_path), index)
    many = counted(len(index), "record")
    _log.warning("%s: %s; rebuilt it in memory and cache, %s", idx_path, trouble, many)
    return _shared(rec_path, "scan", known, index)


def rebuild(rec_path: Path, view: memoryview, idx_path: Path) -> int:
    """Write the index of the `.rec` mapped in `view` from a walk through it; returns the number of records.

    Raises:
        DamagedDataError: where the `.rec` cannot be walked; an index that was there stays.
        StorageError: where the index cannot be written.
    """
    try:
        index = scan(view, f"indexing {rec_path.name}")
    except framing.Broken as broken:
        raise DamagedDataError(
            f"{rec_path}: offset {broken.offset}: {broken.reason}; records behind it would get wrong keys, "
            f"so nothing was written. `facerec-data verify {rec_path}` lists all that is damaged"
        ) from None
    write_index(idx_path, index, keep_old=True)
    return len(index)


def scan(view: memoryview, title: str) -> RecordIndex:
    """The index of a whole `.rec`, keys 0, 1, 2, … in file order, behind a progress bar; raises `Broken`."""
    from facerec.progress import Bar

    offsets = array("q")
    with Bar(total=len(view), unit="B", unit_scale=True, desc=title, delay=0.5) as bar:
        for offset, _ in framing.walk(view):
            offsets.append(offset)
            if not len(offsets) & 0xFFFF:
                bar.update(offset - bar.n)
        bar.update(len(view) - bar.n)
    return RecordIndex({"offset": np.array(offsets, np.int64)}, 0, "rebuilt")


def write_index(idx_path: Path, index: RecordIndex, keep_old: bool = False) -> None:
    """Write the text `.idx`, whole or not at all; `keep_old` leaves one that was there as ``….idx.old``.

    Raises:
        StorageError: where it cannot be written; what was there before is still there.
    """
    with replacing(idx_path) as file:
        for start in range(0, len(index), 1 << 18):
            rows = slice(start, start + (1 << 18))
            pairs = zip(index.keys[rows].tolist(), index.offset_N[rows].tolist(), strict=True)
            file.write("".join(map("%d\t%d\n".__mod__, pairs)).encode("ascii"))
        old = idx_path.with_name(f"{idx_path.name}.old")
        if keep_old and idx_path.exists() and not old.exists():
            idx_path.replace(old)


def strays(index: RecordIndex, view: memoryview) -> str | None:
    """A complaint where at half or more of a sample of the offsets no record begins, or another key's does.

    Fewer are damaged records, which do not make an index stale.
    """
    row_S = np.unique(np.linspace(0, len(index) - 1, _SAMPLES).astype(np.int64))
    offsets = index.offset_N[row_S].tolist()
    wrong = [offset for offset in offsets if not framing.begins(view, offset)]
    if 2 * len(wrong) >= len(offsets):
        return f"no record begins at {len(wrong)} of {len(offsets)} offsets tried, such as {wrong[0]}"
    if 2 * len(set(offsets)) <= len(offsets) > 1:
        offset, times = Counter(offsets).most_common(1)[0]
        return f"offset {offset} is that of {times} of {len(offsets)} keys tried"
    return None


def _misfit(index: RecordIndex, view: memoryview, rec_path: Path, idx_path: Path) -> str | None:
    """Why `index` does not belong to the `.rec` in `view`, from a look at some records, else None."""
    if not len(index):
        return "it is empty" if len(view) else None
    highest = int(index.offset_N.max())
    if highest + 8 > len(view):
        return f"it points to offset {highest}, beyond the {len(view)} bytes of {rec_path.name}"
    trouble = strays(index, view)
    if trouble is not None:
        return trouble
    try:
        _, end = framing.assemble(view, highest)
    except framing.Broken:
        return None  # that record is damaged: whoever reads it will be told
    if end < len(view):
        if cache.stamp(rec_path).mtime_ns > cache.stamp(idx_path).mtime_ns:
            return f"its last record ends at {end}, the newer {rec_path.name} at {len(view)}"
        _log.warning(
            "%s lists records up to byte %d of the %d of %s; the rest is left out",
            *(idx_path, end, len(view), rec_path),
        )
    return None


def _cached(source: Path, kind: str, known: cache.Stamp) -> RecordIndex | None:
    """The index kept in the cache of `source`, if valid."""
    found = cache.load(source, kind, [known])
    if found is None or "offset" not in found.arrays:
        return None
    return RecordIndex(found.arrays, found.values["first"], "cached", shared=True)


def _shared(source: Path, kind: str, known: cache.Stamp, index: RecordIndex) -> RecordIndex:
    """`index` put into a cache and mapped from there; the same object where no cache can be written."""
    kept = cache.store(source, kind, [known], index.arrays, first=index.first)
    return index if kept is None else RecordIndex(kept.arrays, index.first, index.origin, shared=True)


def _twice(idx_path: Path, key: int) -> str:
    """Message naming the lines that give the same key."""
    with idx_path.open("rb") as file:
        lines = [n for n, line in enumerate(file, 1) if line.strip() and int(line.split()[0]) == key]
    return (
        f"{idx_path}, line {lines[1]}: key {key} is already on line {lines[0]}; remove one of them, "
        f"or rebuild the index with `facerec-data index --force`"
    )
