"""Tables as plain text whose columns line up."""

from __future__ import annotations

from collections.abc import Sequence

from facerec.errors import printable


def as_markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up, so that it reads well as plain text too."""
    first, *others = [f"| {line} |" for line in aligned([header, *rows], " | ")]
    rule = "".join("|" if sign == "|" else "-" for sign in first)
    return "\n".join([first, rule, *others]) + "\n"


def aligned(rows: Sequence[Sequence[str]], between: str = "  ") -> list[str]:
    """Lines of cells, each column as wide as its longest cell, with control characters escaped."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
