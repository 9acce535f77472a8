"""Read and write RecordIO files (`.rec` + `.idx`), whose bytes are those of `packs.framing`.

The reader maps the file: there is no position to share, so one reader serves threads and forked processes at
once, and pickles (without the data) into spawned ones. A record of one part, which nearly all are, is handed
out as a memoryview into the map without copying. Only images, which are read for hours, are read by system
calls: of a file that is cut short meanwhile these return less, where the map ends the process. No length
found in a file is believed before it is known to end inside that file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from facerec.errors import ChangedDataError, DamagedDataError, MissingDataError, StorageError, UserError
from facerec.files import Unfinished, storing, sync
from facerec.packs import framing
from facerec.packs.framing import Record, pack, unpack
from facerec.packs.index import RecordIndex, default_path, open_index

__all__ = ["Record", "RecordReader", "RecordWriter", "append_record", "pack", "unpack"]

_READ = 1 << 13  # bytes read for an image at first; most aligned faces are smaller
_SAMPLES = 64  # records looked at where the file has another time or size than it had
_AHEAD = 1 << 17  # bytes, Linux's default read_ahead_kb; of a longer stretch it reads only the beginning
_part_and_flag = struct.Struct("<III").unpack_from  # magic, length word, flag


class RecordReader:
    """Random and sequential access to the records of a `.rec`.

    Args:
        path: the `.rec` file.
        index_path: its `.idx`; default: beside it, of the same name. It is read when a key is first asked for
            and rebuilt where it is missing or stale (`facerec.packs.index.open_index`), so that reading in
            sequence (`records`, `raw_records`) needs none.

    Raises:
        MissingDataError: where there is no such `.rec`.

    Attributes:
        view: all bytes of the file, read-only.
    """

    def __init__(self, path: str | Path, index_path: str | Path | None = None) -> None:
        self.path = Path(path)
        self.index_path = default_path(self.path) if index_path is None else Path(index_path)
        self._index: RecordIndex | None = None
        self._lock = threading.Lock()
        self._map()

    def _map(self) -> None:
        try:
            with self.path.open("rb") as file:
                self._handle = os.dup(file.fileno())
            self._release = weakref.finalize(self, os.close, self._handle)
            status = os.fstat(self._handle)
            size, self._stamp = status.st_size, (status.st_size, status.st_mtime_ns)
            self._mmap = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ) if size else None
        except OSError as problem:
            raise MissingDataError(f"{self.path}: {problem.strerror}; give the path of a .rec file") from None
        self.view = memoryview(self._mmap if self._mmap is not None else b"")
        self._size = len(self.view)
        self._closed = False

    # Index ------------------------------------------------------------------------------------------------

    @property
    def index(self) -> RecordIndex:
        """The index, opened on first use."""
        if self._index is None:
            with self._lock:
                self._require_open()
                if self._index is None:
                    self._index = open_index(self.path, self.view, self.index_path)
        return self._index

    @property
    def keys(self) -> np.ndarray:
        """int64 keys, in the order of the index."""
        return self.index.keys

    @property
    def offsets(self) -> np.ndarray:
        """int64 byte offsets, in the order of the index."""
        return self.index.offset_N

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys.tolist())

    def __contains__(self, key: object) -> bool:
        try:
            self.index.row(key)  # type: ignore[arg-type]
        except (KeyError, TypeError):
            return False
        return True

    # Reading ----------------------------------------------------------------------------------------------

    def __getitem__(self, key: int) -> Record:
        """The image record of `key`, its payload copied into bytes.

        Raises:
            KeyError: where the index has no such key.
            DamagedDataError: naming file, key, offset and what is wrong.
        """
        record = self.record_at(self.offset(key))
        return record._replace(payload=bytes(record.payload))

    def offset(self, key: int) -> int:
        """The byte offset of the record of `key`; raises KeyError."""
        index = self.index
        return index.offset_N.item(index.row(key))

    def raw_at(self, offset: int) -> memoryview:
        """The bytes of the record at `offset`, image header included: in the map where it has one part."""
        self._require_open()
        try:
            return framing.assemble(self.view, offset)[0]
        except framing.Broken as broken:
            raise self._damaged(offset, broken.where(offset)) from None

    def payload_at(self, offset: int) -> memoryview:
        """The encoded image of the record at `offset`. This is the hot path of training: a few µs.

        Raises:
            DamagedDataError: naming key and offset.
            ChangedDataError: the file was cut short, or overwritten, since it was opened.
        """
        if 0 <= offset <= self._size - 12:
            part = os.pread(self._handle, _READ, offset)
            if len(part) >= 12:
                magic, word, flag = _part_and_flag(part)
                begin, end = 32 + 4 * flag, 8 + word
                if (
                    magic == framing.MAGIC
                    and word < framing.LENGTH_LIMIT
                    and begin <= end <= self._size - offset
                ):
                    if end > len(part):
                        part += os.pread(self._handle, end - len(part), offset + len(part))
                    if len(part) >= end:
                        return memoryview(part)[begin:end]
        self.require_unchanged()
        return self.record_at(offset).payload  # type: ignore[return-value]

    def require_unchanged(self) -> None:
        """Raise `ChangedDataError` where the file was cut short or overwritten since it was opened.

        One that was only touched, has grown, or was replaced by another under its name still has all records.
        """
        self._require_open()
        status = os.fstat(self._handle)
        if self._stamp == (status.st_size, status.st_mtime_ns):
            return
        offsets = self.offsets[:: len(self) // _SAMPLES + 1].tolist() if len(self) else []
        begins = [int.from_bytes(os.pread(self._handle, 4, offset), "little") for offset in offsets]
        lost = sum(word != framing.MAGIC for word in begins)
        if status.st_size < self._size or 2 * lost >= len(offsets) > 0:  # fewer are damaged records
            raise ChangedDataError(
                f"{self.path}: was changed while it was being read; put back the file that was there"
            )

    def record_at(self, offset: int) -> Record:
        """The image record at `offset`, its payload a memoryview; raises DamagedDataError."""
        return self._image(offset, self.raw_at(offset))

    def records(self) -> Iterator[Record]:
        """Every image record in file order, without the index; payloads are memoryviews into the map."""
        for offset, raw in self.raw_records():
            yield self._image(offset, raw)

    def raw_records(self) -> Iterator[tuple[int, memoryview]]:
        """Offset and bytes of every record in file order, without the index."""
        self._require_open()
        offset = 0
        try:
            while offset < self._size:
                raw, end = framing.assemble(self.view, offset)
                yield offset, raw
                offset = end
        except framing.Broken as broken:
            raise self._damaged(offset, broken.where(offset)) from None

    def _image(self, offset: int, raw: memoryview) -> Record:
        try:
            return unpack(raw)
        except DamagedDataError as problem:
            raise self._damaged(offset, str(problem)) from None

    def prefetch(self, offsets: Sequence[int], length: int = 16384) -> None:
        """Have the system read about `length` bytes at each of `offsets` ahead, without waiting for them."""
        if self._mmap is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        page = mmap.ALLOCATIONGRANULARITY
        begin = end = 0
        for offset in offsets:
            low = offset - offset % page
            if begin <= low <= end and offset + length - begin <= _AHEAD:  # neighbours: one call for many
                end = max(end, offset + length)
                continue
            self._will_need(begin, end)
            begin, end = low, offset + length
        self._will_need(begin, end)

    def _will_need(self, begin: int, end: int) -> None:
        if self._mmap is not None and 0 <= begin < min(end, self._size):
            self._mmap.madvise(mmap.MADV_WILLNEED, begin, min(end, self._size) - begin)

    def where(self, offset: int, key: int | None = None) -> str:
        """``key 17 at offset 90112 of /data/train.rec``; the key is looked up where it is not given."""
        if key is None and self._index is not None:
            key = self._index.key_at(offset)
        return f"{'' if key is None else f'key {key} at '}offset {offset} of {self.path}"

    def _damaged(self, offset: int, reason: str) -> DamagedDataError:
        hint = f"`facerec-data verify {self.path}` lists every damaged record"
        return DamagedDataError(f"{self.where(offset)}: {reason}; {hint}")

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError(f"the reader of {self.path} is closed")

    # Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file. Memoryviews handed out before stay readable; the map goes when they do."""
        self.view = memoryview(b"")
        self._size = 0
        self._closed = True
        self._release()
        mapped, self._mmap = self._mmap, None
        if mapped is not None:
            with contextlib.suppress(BufferError):  # a memoryview of a record is still in use
                mapped.close()

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": (self.path, self.index_path), "stamp": self._stamp}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.index_path = state["paths"]
        self._index = None  # mapped from its cache, as the file is
        self._lock = threading.Lock()
        self._map()
        if self._stamp != state["stamp"]:
            raise ChangedDataError(f"{self.path}: was changed while it was being read; start again")

    def __repr__(self) -> str:
        return f"RecordReader({str(self.path)!r})"


def append_record(
    rec: BinaryIO, idx: BinaryIO, key: int, offset: int, record: Record | bytes | bytearray | memoryview
) -> int:
    """Append a record at `offset` of a `.rec`, and its line of the `.idx`; returns the offset behind it.

    Raises:
        UserError: where a field is out of range, or the record has 2^29 bytes or more.
    """
    try:
        framed = framing.frame(pack(record) if isinstance(record, Record) else record)
    except ValueError as problem:
        raise UserError(f"key {key}: {problem}; leave it out") from None
    rec.write(framed)
    idx.write(b"%d\t%d\n" % (key, offset))
    return offset + len(framed)


class RecordWriter:
    """Write a `.rec` and its `.idx`, byte for byte as the original writer does.

    Both grow under temporary names beside their targets and are renamed by a `close` without error; after an
    exception in the ``with`` block, or without `close`, whatever was there before is still there.

    Args:
        path: the `.rec` to write.
        index_path: its `.idx`; default: beside it, of the same name.

    Raises:
        StorageError: where the files cannot be written, here and in `write` and `close`.
    """

    def __init__(self, path: str | Path, index_path: str | Path | None = None) -> None:
        self.path = Path(path)
        self.index_path = default_path(self.path) if index_path is None else Path(index_path)
        self._files: list[Unfinished] = []
        self._process = os.getpid()
        self._offset = 0
        self._keys = array("Q")
        self._growing = True
        with self._storage():
            for target in (self.path, self.index_path):
                self._files.append(Unfinished(target))

    def write(self, key: int, record: Record | bytes | bytearray | memoryview) -> None:
        """Append a record under `key`, 0 … 2^63 − 1, unused so far: an image record, or plain bytes.

        Raises:
            UserError: where the key or a field is out of range, or the record has 2^29 bytes or more.
        """
        if not 0 <= key < 2**63:
            raise UserError(f"key {key}: must be 0 … 2^63 − 1")
        rec, idx = self._files
        with self._storage():
            self._offset = append_record(rec.file, idx.file, key, self._offset, record)
        self._growing = self._growing and (not self._keys or key > self._keys[-1])
        self._keys.append(key)

    def close(self) -> None:
        """Finish both files and give them their names.

        Raises:
            UserError: where a key was written twice; nothing is renamed then.
        """
        if not self._files:
            return
        if not self._growing:
            keys, counts = np.unique(np.frombuffer(self._keys, np.uint64), return_counts=True)
            if len(keys) < len(self._keys):
                self.abort()
                raise UserError(f"{self.path}: key {keys[counts > 1][0]} was written twice; keys must differ")
        with self._storage():
            for file in self._files:
                sync(file.file)
            for file in self._files:
                file.publish()
        self._files = []

    def abort(self) -> None:
        """Drop what was written."""
        for file in self._files:
            file.drop()
        self._files = []

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            with storing(self.path):
                yield
        except StorageError:
            self.abort()
            raise

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        if getattr(self, "_files", None) and self._process == os.getpid():  # a forked child owns nothing
            self.abort()
