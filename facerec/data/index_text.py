"""Parse a text `.idx` (``key<TAB>offset`` a line) at memory speed, and name the line where it is wrong.

Nearly every index has dense keys and growing offsets, so that long runs of lines have the same length and the
digits stand in columns: those are read eight digits at once with integer arithmetic over strided views. Other
regular lines go through NumPy's own number parser, and only irregular ones (blank lines, CR LF, spaces,
mistakes) through Python.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from facerec.errors import DamagedDataError

_BLOCK = 1 << 18  # bytes parsed at once: fits the second-level cache
_SHORTEST_RUN = 64  # lines of equal shape worth the columnwise way
_TAB, _NEWLINE, _ZERO = 9, 10, 48
_LIMIT = 2**63


def parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of the index at `path`, int64, in file order.

    Raises:
        DamagedDataError: naming file and line, where a line is not two whole numbers of 0 or more.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            empty = np.empty(0, np.int64)
            return empty, empty
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    position, rows, lines = 0, 0, _SHORTEST_RUN
    with text:
        most = _count_newlines(text) + 1  # asked for at once: many small arrays would leave holes in the heap
        key_N, offset_N = np.empty(most, np.int64), np.empty(most, np.int64)
        while position < len(text):
            key_K, offset_K, end = _columns(text, position, lines)
            if len(key_K) < _SHORTEST_RUN:
                key_K, offset_K, end = _block(path, text, position)
                lines = _SHORTEST_RUN
            else:
                lines = min(lines * 4, _BLOCK)
            key_N[rows : rows + len(key_K)] = key_K
            offset_N[rows : rows + len(key_K)] = offset_K
            rows += len(key_K)
            position = end
    return key_N[:rows], offset_N[:rows]


def _count_newlines(text: mmap.mmap) -> int:
    byte = np.frombuffer(text, np.uint8)
    return sum(
        int(np.count_nonzero(byte[at : at + _BLOCK] == _NEWLINE)) for at in range(0, len(byte), _BLOCK)
    )


def _columns(text: mmap.mmap, position: int, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Up to `most` lines shaped like the first one: digits in the same columns. May be none."""
    none = np.empty(0, np.int64)
    newline = text.find(b"\n", position, position + 64)
    tab = text.find(b"\t", position, newline) if newline >= 0 else -1
    length, wide_key, wide_offset = newline + 1 - position, tab - position, newline - tab - 1
    if tab < 0 or position < 16 or not 1 <= wide_key <= 16 or not 1 <= wide_offset <= 16:
        return none, none, position
    count = min(most, _BLOCK // length, (len(text) - position) // length)
    line_KL = np.frombuffer(text, np.uint8, count * length, position).reshape(count, length)
    right_KL = line_KL - np.uint8(_ZERO) < 10
    right_KL[:, wide_key] = line_KL[:, wide_key] == _TAB
    right_KL[:, -1] = line_KL[:, -1] == _NEWLINE
    if not right_KL.all():
        count = int(right_KL.all(axis=1).argmin())
    key_K = _digits(text, tab, length, count, wide_key)
    offset_K = _digits(text, newline, length, count, wide_offset)
    return key_K.view(np.int64), offset_K.view(np.int64), position + count * length


def _digits(text: mmap.mmap, end: int, stride: int, count: int, width: int) -> np.ndarray:
    """The `width` (1 … 16) digits before byte `end`, and before every `stride`-th byte after it, as uint64.

    Eight ASCII digits are one little-endian 64-bit word, the last digit in the highest byte. Neighbours are
    summed in three steps: digits to pairs, pairs to fours, fours to eight.
    """
    word = np.ndarray((count,), "<u8", text, end - 8, (stride,))
    foreign = np.uint64(8 * max(8 - width, 0))  # bits of bytes before the number
    value = word >> foreign
    value <<= foreign
    value &= np.uint64(0x0F0F0F0F0F0F0F0F)
    high = value >> np.uint64(8)
    value *= np.uint64(10)
    value += high
    high = value >> np.uint64(16)
    value &= np.uint64(0x000000FF000000FF)
    value *= np.uint64(100 + (1_000_000 << 32))
    high &= np.uint64(0x000000FF000000FF)
    high *= np.uint64(1 + (10_000 << 32))
    value += high
    value >>= np.uint64(32)
    if width > 8:
        value += _digits(text, end - 8, stride, count, width - 8) * np.uint64(10**8)
    return value


def _block(path: Path, text: mmap.mmap, position: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The lines of about a block, whatever their shapes."""
    end = text.find(b"\n", min(position + _BLOCK // 4, len(text))) + 1 or len(text)
    chunk = text[position:end]
    byte = np.frombuffer(chunk, np.uint8)
    between = byte[(byte - np.uint8(_ZERO)) >= 10]
    if len(between) % 2 == 0 and (between[0::2] == _TAB).all() and (between[1::2] == _NEWLINE).all():
        number = np.fromstring(chunk, dtype=np.int64, sep=" ")
        if len(number) == len(between) and number.max(initial=0) < _LIMIT - 1:  # it is clipped there
            return number[0::2], number[1::2], end
    key_K, offset_K = _lines(path, chunk, text[:position].count(b"\n") + 1)
    return key_K, offset_K, end


def _lines(path: Path, chunk: bytes, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Irregular lines, one by one: blank ones are passed over, CR and spaces at the ends are forgiven."""
    pairs: list[tuple[int, int]] = []
    for number, line in enumerate(chunk.split(b"\n"), first):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(map(_is_number, fields)):
            shown = line[:60].decode("utf-8", "backslashreplace")
            raise DamagedDataError(
                f"{path}, line {number}: {shown!r} is not key<TAB>offset; "
                f"remove that line, or the file, and have it rebuilt with `facerec-data index`"
            )
        pairs.append((int(fields[0]), int(fields[1])))
    both_K2 = np.array(pairs, np.int64).reshape(-1, 2)
    return both_K2[:, 0], both_K2[:, 1]


def _is_number(field: bytes) -> bool:
    """Whether these are digits of a number below 2^63."""
    return field.isdigit() and len(field.lstrip(b"0")) <= 19 and int(field[-19:]) < _LIMIT
