"""The bytes of a `.rec`: records cut into parts (RecordIO), and the image record inside of each.

A part is ``uint32 magic, uint32 (cflag << 29 | n)``, n bytes, zeros up to a multiple of 4, little endian.
cflag 0 is a record of one part; 1, 2, 3 are the first, middle and last part of one whose payload held the
magic number at a multiple of 4: it is cut there, and the number dropped, which so stands at a multiple of 4
only where a part begins. An image record is a 24-byte header, labels if several, and the encoded image.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, UserError

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
LENGTH_BITS = 29
LENGTH_LIMIT = 1 << LENGTH_BITS  # a part's length is under this
SINGLE, FIRST, MIDDLE, LAST = range(4)
HEADER = struct.Struct("<IfQQ")  # of an image record: flag, label, id, id2

_part_head = struct.Struct("<II")
_magic = re.compile(re.escape(MAGIC_BYTES))


class Broken(Exception):
    """A record's framing is damaged at `offset` of the file, for `reason`; callers add file and key."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason

    def where(self, record: int) -> str:
        """The reason, with the offset of the part where that is not the `record`'s own."""
        return self.reason if self.offset == record else f"part at offset {self.offset}: {self.reason}"


# Parts ---------------------------------------------------------------------------------------------------


def frame(payload: bytes | bytearray | memoryview) -> bytes:
    """The bytes of one record, cut into parts as the original writer cuts them.

    Raises:
        ValueError: where the payload has 2^29 bytes or more.
    """
    payload = bytes(payload)
    if len(payload) >= LENGTH_LIMIT:
        raise ValueError(f"a record holds up to {LENGTH_LIMIT - 1} bytes, not {len(payload)}")
    cuts = [found.start() for found in _magic.finditer(payload) if found.start() % 4 == 0]
    flags = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [SINGLE]
    pieces = []
    for cflag, (before, end) in zip(flags, pairwise([-4, *cuts, len(payload)]), strict=True):
        begin = before + 4
        pieces += [_part_head.pack(MAGIC, cflag << LENGTH_BITS | end - begin), payload[begin:end]]
    return b"".join([*pieces, bytes(-len(pieces[-1]) % 4)])


def _part(view: memoryview, offset: int) -> tuple[int, int, int]:
    """cflag, begin and end of the payload of the part at `offset`, all inside `view`; raises `Broken`."""
    if offset < 0 or offset % 4 or offset >= len(view):
        raise Broken(
            offset, f"not a multiple of 4 below the file's {len(view)} bytes, so no record begins there"
        )
    if offset + 8 > len(view):
        raise Broken(offset, f"truncated: the file ends {len(view) - offset} bytes into a record's first 8")
    magic, word = _part_head.unpack_from(view, offset)
    if magic != MAGIC:
        raise Broken(offset, f"bad magic number 0x{magic:08x} instead of 0x{MAGIC:08x}")
    begin = offset + 8
    end = begin + (word & LENGTH_LIMIT - 1)
    if end > len(view):
        raise Broken(
            offset, f"truncated: a part claims {end - begin} bytes, the file ends after {len(view) - begin}"
        )
    return word >> LENGTH_BITS, begin, end


def _parts(view: memoryview, offset: int) -> list[tuple[int, int]]:
    """Begin and end of the payload of each part of the record at `offset`; raises `Broken`."""
    cflag, begin, end = _part(view, offset)
    if cflag not in (SINGLE, FIRST):
        raise Broken(offset, f"bad cflag sequence: a record begins with cflag {cflag}")
    spans = [(begin, end)]
    while cflag not in (SINGLE, LAST):
        at = _padded(end)
        if at >= len(view):
            reason = f"truncated: the file ends after part {len(spans)} of a record, before its last part"
            raise Broken(at, reason)
        cflag, begin, end = _part(view, at)
        if cflag not in (MIDDLE, LAST):
            raise Broken(at, f"bad cflag sequence: cflag {cflag} after part {len(spans)} of a record")
        spans.append((begin, end))
    return spans


def assemble(view: memoryview, offset: int) -> tuple[memoryview, int]:
    """Payload of the record at `offset`, and where the next record begins; raises `Broken`.

    The payload lies in `view` where the record has one part; parts are joined in new memory otherwise, no
    more of it than the file really holds.
    """
    spans = _parts(view, offset)
    following = _padded(spans[-1][1])
    if len(spans) == 1:
        return view[slice(*spans[0])], following
    return memoryview(MAGIC_BYTES.join(view[begin:end] for begin, end in spans)), following


def walk(view: memoryview, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Begin and padded end of every record from `offset` on, without touching payloads; raises `Broken`."""
    size = len(view)
    unpack_from = _part_head.unpack_from
    while offset < size:
        end = size + 1
        if offset + 8 <= size:
            magic, word = unpack_from(view, offset)
            if magic == MAGIC and word < LENGTH_LIMIT:  # a single part: cflag 0 leaves the length alone
                end = offset + 8 + word
        if end > size:
            end = _parts(view, offset)[-1][1]
        end = _padded(end)
        yield offset, end
        offset = end


def next_record(view: memoryview, offset: int) -> int:
    """The first position at or after `offset` where a record may begin (see `begins`), or the file's end."""
    found = (found.start() for found in _magic.finditer(view, offset))
    return next((at for at in found if begins(view, at)), len(view))


def begins(view: memoryview, offset: int) -> bool:
    """True where a record may begin: at a multiple of 4 inside the file, with magic and cflag 0 or 1."""
    if offset < 0 or offset % 4 or offset + 8 > len(view):
        return False
    magic, word = _part_head.unpack_from(view, offset)
    return magic == MAGIC and word >> LENGTH_BITS in (SINGLE, FIRST)


def _padded(end: int) -> int:
    """Return the offset at which the next part begins: the next multiple of 4."""
    return end + 3 & -4


# Image records -------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """An image record.

    Attributes:
        flag: the number of labels behind the header; 0 where the header's own label counts.
        label: the header's label (float32), or the tuple of labels behind it.
        id: the first identifier, by custom the record's key.
        id2: the second identifier.
        payload: the encoded image.
    """

    flag: int
    label: float | tuple[float, ...]
    id: int
    id2: int
    payload: bytes | memoryview

    @property
    def first_label(self) -> float:
        """The label, or the first of several."""
        return self.label[0] if isinstance(self.label, tuple) else self.label


def pack(record: Record) -> bytes:
    """The bytes of an image record. As in the original, `label` decides: a number is written with flag 0, a
    sequence with its length as flag; `record.flag` is not looked at.

    Raises:
        UserError: where a field does not fit its type (float32 label, uint64 id and id2).
    """
    several = not isinstance(record.label, int | float | np.number)
    labels = np.asarray(record.label, "<f4").ravel() if several else np.empty(0, "<f4")
    try:
        scalar = 0.0 if several else float(record.label)  # type: ignore[arg-type]
        header = HEADER.pack(len(labels), scalar, record.id, record.id2)
    except (struct.error, OverflowError) as problem:
        shown = f"label={record.label}, id={record.id}, id2={record.id2}"
        raise UserError(f"{shown}: does not fit an image record's header: {problem}") from None
    return b"".join((header, labels.tobytes(), record.payload))


def unpack(raw: bytes | memoryview) -> Record:
    """The image record in the bytes `raw`; its payload is a memoryview into them.

    Raises:
        DamagedDataError: where the header, or the labels it announces, go beyond `raw`.
    """
    view = memoryview(raw)
    if len(view) < HEADER.size:
        raise DamagedDataError(f"no image header: {len(view)} bytes instead of {HEADER.size} or more")
    flag, label, id_, id2 = HEADER.unpack_from(view)
    if flag == 0:
        return Record(0, label, id_, id2, view[HEADER.size :])
    begin = HEADER.size + 4 * flag
    if begin > len(view):
        raise DamagedDataError(f"its header announces {flag} labels, but the record has {len(view)} bytes")
    labels = tuple(np.frombuffer(view[HEADER.size : begin], "<f4").tolist())
    return Record(flag, labels, id_, id2, view[begin:])
