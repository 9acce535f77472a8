"""Text lists that belong to a protocol's published files: numbered lines, and errors that name one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from facerec.errors import DamagedDataError, MissingDataError
from facerec.packs.text import text_lines


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, without the spaces around them."""
    require_list(path)
    for number, line in enumerate(text_lines(path, "surrogateescape"), 1):
        if line.strip():
            yield number, line.strip()


def require_list(path: Path) -> None:
    """Raise MissingDataError unless the list is there."""
    if not path.is_file():
        raise MissingDataError(f"there is no list {path}; it belongs to the protocol's published files")


def wrong_line(path: Path, number: int, line: str, expected: str) -> DamagedDataError:
    """The error for a line that is not what was expected."""
    shown = line if len(line) <= 60 else line[:60] + "…"  # !r escapes what is no text
    return DamagedDataError(f"{path}, line {number}: {shown!r} is not {expected}")
