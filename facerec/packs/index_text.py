"""Read lists in text: tables of whole numbers with NumPy's parser, the lines of any others.

Tables are the text `.idx` (``key<TAB>offset``) and the pair lists of IJB (``template template label``). A
block goes to the parser only where its bytes are digits with one separator between, for the parser itself
takes an empty field for none and shifts the others; any other block is read line by line.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError

_BLOCK = 1 << 18  # bytes parsed at once: fits the second-level cache
_HIGHEST = 2**63 - 1
_TAB, _NEWLINE, _SPACE, _ZERO = b"\t\n 0"


def parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of the index at `path`, int64, in file order.

    Raises:
        DamagedDataError: naming file and line, where a line is not two whole numbers of 0 or more.
    """
    expected = "key<TAB>offset; remove that line, or the file, and have it rebuilt with `facerec-data index`"
    keys, offsets = array("q"), array("q")  # they grow in place
    for number_K2 in number_blocks(path, (_HIGHEST, _HIGHEST), expected):
        keys.frombytes(number_K2[:, 0].tobytes())
        offsets.frombytes(number_K2[:, 1].tobytes())
    return np.frombuffer(keys, np.int64), np.frombuffer(offsets, np.int64)


def is_number(field: str, digits: int = 9) -> bool:
    """True for a whole number of 0 or more, of at most so many ASCII digits."""
    return field.isascii() and field.isdecimal() and len(field) <= digits


def stays_inside(name: str) -> bool:
    """True for a relative path that does not lead out of the folder it is meant for."""
    way = PurePosixPath(name)
    return bool(way.name) and not way.is_absolute() and ".." not in way.parts and "\0" not in name


def text_lines(path: Path, errors: str = "strict") -> list[str]:
    """The lines of a list in UTF-8, without a byte order mark; LF, CR LF or CR ends a line, and nothing else.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: it is not in UTF-8, and `errors` is ``strict``.
    """
    try:
        return path.read_text("utf-8", errors).removeprefix("\ufeff").split("\n")
    except OSError as error:
        raise MissingDataError(f"{path}: {error.strerror}; give the path of the list") from None
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path}: is not text in UTF-8 ({error.reason}); save it as such") from None


def number_blocks(path: Path, highest: Sequence[int], expected: str) -> Iterator[np.ndarray]:
    """Yield the lines of a table of whole numbers, int64 (lines, columns), block by block.

    A tab or spaces stand between two numbers; blank lines, spaces around and CR at the end are passed over.

    Args:
        path: the text file.
        highest: the highest value of each column, whose lowest is 0; their number is that of the columns.
        expected: what a line should be, for the message.

    Raises:
        DamagedDataError: naming file and line, where a line is not that.
    """
    lines = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            block += file.readline(_BLOCK)
            if not block.endswith(b"\n"):
                if len(block) == 2 * _BLOCK:  # cut in the middle of a line
                    raise _wrong(
                        path, lines + block.count(b"\n") + 1, block[block.rfind(b"\n") + 1 :], expected
                    )
                block += b"\n"
            number_KC = _regular(block, highest)
            yield _line_by_line(path, block, lines, highest, expected) if number_KC is None else number_KC
            lines += block.count(b"\n")


def _regular(block: bytes, highest: Sequence[int]) -> np.ndarray | None:
    """The numbers of lines that are digits with one tab or space between; None where any is not that."""
    columns = len(highest)
    byte = np.frombuffer(block, np.uint8)
    place = np.flatnonzero(byte - np.uint8(_ZERO) >= 10)
    if len(place) % columns or place[0] == 0 or (np.diff(place) == 1).any():
        return None
    between_KC = byte[place].reshape(-1, columns)
    inside = between_KC[:, :-1]
    if not ((between_KC[:, -1] == _NEWLINE).all() and ((inside == _TAB) | (inside == _SPACE)).all()):
        return None
    number_KC = np.fromstring(block, np.int64, sep=" ").reshape(-1, columns)
    below = number_KC.max() < _HIGHEST  # where the parser clips larger ones
    return number_KC if below and (number_KC <= highest).all() else None


def _line_by_line(path: Path, block: bytes, lines: int, highest: Sequence[int], expected: str) -> np.ndarray:
    shape = re.compile(b" *" + b"(?: *\t *| +)".join([b"0*([0-9]{1,19})"] * len(highest)) + b"[ \r]*")
    numbers: list[list[int]] = []
    for number, line in enumerate(block.split(b"\n"), lines + 1):
        found = shape.fullmatch(line)
        if found and all(int(field) <= most for field, most in zip(found.groups(), highest, strict=True)):
            numbers.append(list(map(int, found.groups())))
        elif line.strip():
            raise _wrong(path, number, line, expected)
    return np.array(numbers, np.int64).reshape(-1, len(highest))


def _wrong(path: Path, number: int, line: bytes, expected: str) -> DamagedDataError:
    shown = line[:60].decode("utf-8", "backslashreplace")
    return DamagedDataError(f"{path}, line {number}: {shown!r} is not {expected}")
