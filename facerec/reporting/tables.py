"""Tables of results: columns per kind of protocol, text for the screen, and the verdicts of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from facerec.evaluation.results import Table
from facerec.evaluation.statistics.comparison import Comparison
from facerec.reporting.evaluated import Evaluated, Row, rows_of
from facerec.reporting.text_table import aligned

Comparisons = Mapping[str, Sequence[Comparison]]


def tables_of(evaluated: Sequence[Evaluated]) -> list[tuple[list[str], list[Row]]]:
    """A table per kind of protocol: the labels of numbers that any of its results supports, and its rows."""
    rows = sorted(rows_of(evaluated), key=lambda row: row[2].kind)  # stable: targets stay together
    tables = []
    for _, group in groupby(rows, key=lambda row: row[2].kind):
        of_kind = list(group)
        numbers = [number for _, _, result in of_kind for number in result.numbers()]
        supported = {number.label for number in numbers if number.value is not None}
        labels = [label for label in dict.fromkeys(n.label for n in numbers) if label in supported]
        tables.append((labels, of_kind))
    return tables


def screen_table(evaluated: Sequence[Evaluated]) -> str:
    """Target, model and numbers with five digits, columns that line up."""
    parts = []
    for labels, rows in tables_of(evaluated):
        lines = [["target", "model", *labels]]
        for one, target, result in rows:
            text = {number.label: number.text for number in result.numbers()}
            lines.append([target, one.name, *(text[label] for label in labels)])
        parts.append("\n".join(line.rstrip() for line in aligned(lines)))
    return "\n\n".join(parts)


def matrix(evaluated: Sequence[Evaluated]) -> Table | None:
    """Models × sets in per cent, as published tables have them; None of fewer than two sets or models."""
    targets = list(dict.fromkeys(target for _, target, _ in rows_of(evaluated)))
    if len(evaluated) < 2 or len(targets) < 2:
        return None
    rows: list[list[str]] = []
    judged: dict[str, str] = {}
    for one in evaluated:
        numbers = [one.results[target].headline if target in one.results else None for target in targets]
        judged |= {t: number.phrase for t, number in zip(targets, numbers, strict=True) if number is not None}
        values = [
            None if number is None or number.value is None else 100 * number.value for number in numbers
        ]
        known = [value for value in values if value is not None]
        alike = len(known) == len(targets) and len(set(judged.values())) == 1  # else a mean says nothing
        mean = sum(known) / len(known) if alike else None
        rows.append([one.name, *("–" if value is None else f"{value:.2f}" for value in (*values, mean))])
    by = ", ".join(f"{target} {phrase}" for target, phrase in judged.items())
    return Table("Models and sets", f"Per cent: {by}.", ["Model", *targets, "Mean"], rows)


def comparison_lines(comparisons: Comparisons) -> list[str]:
    """The paired comparison of each two models, a line each, five digits."""
    lines = []
    for target, found in comparisons.items():
        for one in found:
            interval, test, corrected, alone = "", "not tested (eval.bootstrap=0)", "", ""
            if one.difference_interval is not None:
                interval = " (95 % {:+.5f} to {:+.5f})".format(*one.difference_interval)
            if one.first_only is not None:
                alone = f"; right alone {one.first_only:,} against {one.second_only:,}"
            if one.p is not None:
                test = f"{'McNemar' if alone else 'bootstrap'} p {p_text(one.p)}"
            if one.p_holm is not None and sum(other.number == one.number for other in found) > 1:
                corrected = f", Holm-corrected {p_text(one.p_holm)}"
            number = f"{one.number} " if one.number else ""
            lines.append(
                f"{target}: {one.first} against {one.second}: {number}{one.difference:+.5f}{interval}"
                f"{alone}; {test}{corrected}"
            )
    return lines


def p_text(p: float | None) -> str:
    """A p value with four digits after the point, or as a power of ten where it is small; a dash for none."""
    if p is None:
        return "–"
    return f"{p:.4f}" if p >= 0.001 else f"{p:.1e}"
