"""The RecordIO framing: how a record is cut into parts and put together again, and how a file is walked.

A part is ``uint32 magic, uint32 (cflag << 29 | n)``, n bytes, zeros up to a multiple of 4, little endian.
cflag 0 is a whole record; 1, 2, 3 are the first, middle and last part of one whose payload held the magic
number at a multiple of 4: the payload is cut there and the number itself is dropped. So the magic number
stands at a multiple of 4 in a file only where a part begins.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
LENGTH_BITS = 29
LENGTH_LIMIT = 1 << LENGTH_BITS  # a part's length is under this
WHOLE, FIRST, MIDDLE, LAST = range(4)

_head = struct.Struct("<II")


class Broken(Exception):
    """A record's framing is not in order; callers add file and key.

    Attributes:
        offset: where in the file the trouble is.
        reason: what is wrong there.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason

    def place(self, record: int) -> str:
        """The reason, with the offset of the part where that is not the `record`'s own."""
        return self.reason if self.offset == record else f"part at offset {self.offset}: {self.reason}"


def frame(payload: bytes | bytearray | memoryview) -> bytes:
    """The bytes of one record, cut into parts as the original writer cuts them.

    Raises:
        ValueError: where the payload has 2^29 bytes or more.
    """
    payload = bytes(payload)
    if len(payload) >= LENGTH_LIMIT:
        raise ValueError(f"a record holds up to {LENGTH_LIMIT - 1} bytes, not {len(payload)}")
    pieces: list[bytes] = []
    begin = 0
    cut = payload.find(MAGIC_BYTES)
    while cut >= 0:
        if cut % 4 == 0:
            cflag = MIDDLE if begin else FIRST
            pieces += (_head.pack(MAGIC, cflag << LENGTH_BITS | cut - begin), payload[begin:cut])
            begin = cut + 4
        cut = payload.find(MAGIC_BYTES, max(begin, cut + 1))
    tail = len(payload) - begin
    cflag = LAST if begin else WHOLE
    pieces += (_head.pack(MAGIC, cflag << LENGTH_BITS | tail), payload[begin:], bytes(-tail % 4))
    return b"".join(pieces)


def part(view: memoryview, offset: int) -> tuple[int, int, int]:
    """cflag, begin and end of the payload of the part at `offset`, all inside `view`; raises `Broken`."""
    if offset < 0 or offset % 4 or offset >= len(view):
        raise Broken(
            offset, f"not a multiple of 4 below the file's {len(view)} bytes, so no record begins there"
        )
    if offset + 8 > len(view):
        raise Broken(offset, f"truncated: the file ends {len(view) - offset} bytes into a record's first 8")
    magic, word = _head.unpack_from(view, offset)
    if magic != MAGIC:
        raise Broken(offset, f"bad magic number 0x{magic:08x} instead of 0x{MAGIC:08x}")
    begin = offset + 8
    end = begin + (word & LENGTH_LIMIT - 1)
    if end > len(view):
        raise Broken(
            offset, f"truncated: a part claims {end - begin} bytes, the file ends after {len(view) - begin}"
        )
    return word >> LENGTH_BITS, begin, end


def assemble(view: memoryview, offset: int) -> tuple[memoryview, int]:
    """Payload of the record at `offset`, and where the next record begins; raises `Broken`.

    The payload lies in `view` where the record has one part; parts are joined in new memory otherwise, no
    more of it than the file really holds.
    """
    cflag, begin, end = part(view, offset)
    if cflag == WHOLE:
        return view[begin:end], _padded(end)
    if cflag != FIRST:
        raise Broken(offset, f"bad cflag sequence: a record begins with cflag {cflag}")
    pieces = [view[begin:end]]
    while cflag != LAST:
        at = _padded(end)
        if at >= len(view):
            raise Broken(
                at, f"truncated: the file ends after part {len(pieces)} of a record, before its last part"
            )
        cflag, begin, end = part(view, at)
        if cflag not in (MIDDLE, LAST):
            raise Broken(at, f"bad cflag sequence: cflag {cflag} after part {len(pieces)} of a record")
        pieces.append(view[begin:end])
    return memoryview(MAGIC_BYTES.join(pieces)), _padded(end)


def walk(view: memoryview, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Begin and padded end of every record from `offset` on, without touching payloads; raises `Broken`."""
    size = len(view)
    unpack = _head.unpack_from
    while offset < size:
        if offset + 8 <= size:
            magic, word = unpack(view, offset)
            end = offset + 8 + word  # of a single part: cflag 0 leaves the length alone
            if magic == MAGIC and word < LENGTH_LIMIT and end <= size:
                end = end + 3 & -4
                yield offset, end
                offset = end
                continue
        cflag, _, end = part(view, offset)
        if cflag != FIRST:
            raise Broken(offset, f"bad cflag sequence: a record begins with cflag {cflag}")
        parts = 1
        while cflag != LAST:
            at = _padded(end)
            if at >= size:
                raise Broken(
                    at, f"truncated: the file ends after part {parts} of a record, before its last part"
                )
            cflag, _, end = part(view, at)
            if cflag not in (MIDDLE, LAST):
                raise Broken(at, f"bad cflag sequence: cflag {cflag} after part {parts} of a record")
            parts += 1
        yield offset, _padded(end)
        offset = _padded(end)


def next_record(view: memoryview, offset: int) -> int:
    """The first place at or after `offset` where a record may begin (see `begins`), or the file's end."""
    at = offset
    while at < len(view):
        at = _find_magic(view, at)
        if at + 8 > len(view):
            break
        if _head.unpack_from(view, at)[1] >> LENGTH_BITS in (WHOLE, FIRST):
            return at
        at += 4
    return len(view)


def _find_magic(view: memoryview, offset: int) -> int:
    """The first multiple of 4 at or after `offset` that holds the magic number, or the end of `view`."""
    block = 1 << 20
    at = offset + -offset % 4
    while at < len(view):
        chunk = bytes(view[at : at + block])
        found = chunk.find(MAGIC_BYTES)
        while found >= 0 and found % 4:
            found = chunk.find(MAGIC_BYTES, found + 1)
        if found >= 0:
            return at + found
        at += block
    return len(view)


def _padded(end: int) -> int:
    """Where the next part begins."""
    return end + 3 & -4


def begins(view: memoryview, offset: int) -> bool:
    """Whether a record may begin at `offset`: a multiple of 4 inside the file, magic, cflag 0 or 1."""
    if offset < 0 or offset % 4 or offset + 8 > len(view):
        return False
    magic, word = _head.unpack_from(view, offset)
    return magic == MAGIC and word >> LENGTH_BITS in (WHOLE, FIRST)
