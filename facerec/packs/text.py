"""Lists in text: integers by NumPy's parser, numbered lines of any others, checks of their fields, names."""

from __future__ import annotations

import re
import unicodedata
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError

_LONGEST_LINE = 4096  # bytes


def read_table(
    path: Path, highest: Sequence[int], expected: str, dtype: type[np.signedinteger] = np.int64
) -> np.ndarray:
    """A table of integers, (lines, columns): an `.idx`, or the pair list of IJB.

    A tab or spaces stand between two numbers; blank lines, spaces around and CR at the end are passed over.
    An empty field is refused, and never shifts the others.

    Args:
        path: the text file.
        highest: the highest value of each column, whose lowest is 0; their number is that of the columns.
        expected: what a line should be, for the message.
        dtype: of the result; it holds the highest values.

    Raises:
        DamagedDataError: naming file and line, where a line is not that.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        separator = "\t" if b"\t" in file.readline(_LONGEST_LINE) else " "
        file.seek(0)
        chunks = iter(lambda: file.read(2**20), b"")
        usual = b"0123456789 \n" + separator.encode()
        if any(chunk.translate(None, usual) for chunk in chunks):
            # NumPy takes signs, tabs around numbers, and any CR as the end of a line.
            return _line_by_line(path, highest, expected, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are no lines
        try:
            table = np.loadtxt(path, dtype, comments=None, delimiter=separator, ndmin=2, encoding="ascii")
        except ValueError:
            return _line_by_line(path, highest, expected, dtype)
    if not table.size:
        return table.reshape(0, len(highest))
    right = table.shape[1] == len(highest) and table.min() >= 0 and (table.max(axis=0) <= highest).all()
    return table if right else _line_by_line(path, highest, expected, dtype)


def _line_by_line(
    path: Path, highest: Sequence[int], expected: str, dtype: type[np.signedinteger]
) -> np.ndarray:
    """The same in a slow way, for lines of other shapes, and to name the one that is wrong."""
    shape = re.compile(b" *" + b"(?: *\t *| +)".join([b"0*([0-9]{1,19})"] * len(highest)) + b"[ \r\n]*")
    numbers = array("q")
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            found = shape.fullmatch(line)
            if found and all(int(field) <= most for field, most in zip(found.groups(), highest, strict=True)):
                numbers.extend(map(int, found.groups()))
            elif line.strip():
                raise wrong_line(path, number, line.decode("utf-8", "surrogateescape"), expected)
    return np.array(numbers, dtype).reshape(-1, len(highest))


def is_number(field: str, digits: int = 9) -> bool:
    """True for an integer of 0 or more, of at most so many ASCII digits."""
    return field.isascii() and field.isdecimal() and len(field) <= digits


def stays_inside(name: str) -> bool:
    """True for a relative path that does not lead out of the folder it is meant for."""
    way = PurePosixPath(name)
    return bool(way.name) and not way.is_absolute() and ".." not in way.parts and "\0" not in name


def plain_name(name: str) -> str:
    """A name without case, accents and signs, for comparing: ``José_Aznar`` and ``jose aznar`` are one.

    Empty for a mere number, which is no name.
    """
    letters = unicodedata.normalize("NFKD", name)
    plain = "".join(sign for sign in letters if sign.isalnum()).casefold()
    return "" if plain.isdigit() else plain


def text_lines(path: Path, errors: str = "strict") -> list[str]:
    """The lines of a list in UTF-8, without a byte order mark; LF, CR LF or CR ends a line, and nothing else.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: it is not in UTF-8, and `errors` is ``strict``.
    """
    try:
        return path.read_text("utf-8", errors).removeprefix("\ufeff").split("\n")
    except OSError as error:
        raise no_list(path, error) from None
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{path}: is not text in UTF-8 ({error.reason}); save it as such") from None


def numbered_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """The lines of `text_lines` that are not blank, with their numbers and without the spaces around them."""
    for number, line in enumerate(text_lines(path, errors), 1):
        if line.strip():
            yield number, line.strip()


def no_list(path: Path, error: OSError) -> MissingDataError:
    """The error for a list that cannot be read."""
    return MissingDataError(f"{path}: {error.strerror}; give the path of the list")


def wrong_line(path: Path, number: int, line: str, expected: str) -> DamagedDataError:
    """The error for a line that is not what was expected."""
    line = line.rstrip("\r\n")
    shown = line if len(line) <= 60 else line[:60] + "…"  # !r escapes what is no text
    return DamagedDataError(f"{path}, line {number}: {shown!r} is not {expected}")
