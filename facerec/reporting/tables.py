"""The numbers of an evaluation as results.md, results.csv and a table on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from facerec.evaluation.results import Result
from facerec.evaluation.statistics.comparison import Comparison
from facerec.files import csv_lines, replacing
from facerec.reporting.evaluated import Evaluated
from facerec.reporting.sweep import as_markdown

Row = tuple[Evaluated, str, Result]
Comparisons = Mapping[str, Sequence[Comparison]]


def rows_of(evaluated: Sequence[Evaluated]) -> list[Row]:
    """Model, target and result, those of one target together."""
    targets = list(dict.fromkeys(target for one in evaluated for target in one.results))
    return [
        (one, target, one.results[target]) for target in targets for one in evaluated if target in one.results
    ]


def tables_of(evaluated: Sequence[Evaluated]) -> list[tuple[list[str], list[Row]]]:
    """A table for each kind of protocol: labels of its columns of numbers, and its rows."""
    rows = sorted(rows_of(evaluated), key=lambda row: row[2].kind)  # stable: targets stay together
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row[2].kind)]
    return [(labels_of(row[2] for row in group), group) for group in groups]


def labels_of(results: Iterable[Result]) -> list[str]:
    """Labels of the numbers that at least one of the results supports, in order: the columns of a table."""
    labels: dict[str, bool] = {}
    for result in results:
        for number in result.numbers():
            labels[number.label] = labels.get(number.label, False) or number.value is not None
    return [label for label, supported in labels.items() if supported]


def screen_table(evaluated: Sequence[Evaluated]) -> str:
    """Target, model and numbers with five digits, columns that line up."""
    parts = []
    for labels, rows in tables_of(evaluated):
        lines = [["target", "model", *labels]]
        for one, target, result in rows:
            text = {number.label: number.text for number in result.numbers()}
            lines.append([target, one.name, *(text[label] for label in labels)])
        width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        parts.append(
            "\n".join(
                "  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)).rstrip()
                for line in lines
            )
        )
    return "\n\n".join(parts)


def comparison_lines(comparisons: Comparisons) -> list[str]:
    """What McNemar's test says of each two models, a line each, five digits."""
    lines = []
    for target, found in comparisons.items():
        for one in found:
            spread = ""
            if one.difference_interval is not None:
                spread = " (95 % {:+.5f} to {:+.5f})".format(*one.difference_interval)
            corrected = f", Holm-corrected {p_text(one.p_holm)}" if len(found) > 1 else ""
            lines.append(
                f"{target}: {one.first} against {one.second}: {one.difference:+.5f}{spread}; right alone "
                f"{one.first_only:,} against {one.second_only:,}; McNemar p {p_text(one.p)}{corrected}"
            )
    return lines


def p_text(p: float) -> str:
    """``0.0312``; ``3.1e-07`` where it is small."""
    return f"{p:.4f}" if p >= 0.001 else f"{p:.1e}"


def markdown(evaluated: Sequence[Evaluated], comparisons: Comparisons) -> str:
    """results.md: tables that can be pasted into a page, and what goes with the numbers."""
    several = len(evaluated) > 1
    text = []
    for labels, rows in tables_of(evaluated):
        header = ["target", *(["model"] if several else []), *labels]
        lines = []
        for one, target, result in rows:
            cells = [_escaped(target), *([_escaped(one.name)] if several else [])]
            by_label = {number.label: number for number in result.numbers()}
            for number in (by_label[label] for label in labels):
                cells.append(number.text + (f" [{number.interval_text}]" if number.interval_text else ""))
            lines.append(cells)
        text.append(as_markdown(header, lines))
    text.append("± is the deviation over the folds, brackets are 95 % intervals.\n")
    if comparisons:
        text += ["".join(f"- {_escaped(line)}\n" for line in comparison_lines(comparisons))]
    about = [(one.name, _said(one.facts)) for one in evaluated]
    for target, result in {target: result for _, target, result in rows_of(evaluated)}.items():
        about.append((target, _said(result.facts()[:2])))
        about += [(target, note) for note in result.notes]
    text.append("".join(f"- **{_escaped(name)}**: {_escaped(said)}\n" for name, said in about))
    return "\n".join(text)


def _said(facts: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{name[:1].lower()}{name[1:]} {value}" for name, value in facts)


def as_csv(evaluated: Sequence[Evaluated]) -> bytes:
    """results.csv: a row for each target and model, at full precision; empty where there is no value."""
    rows = []
    columns = ["target", "model", "ckpt", "step", "protocol"]
    for one, target, result in rows_of(evaluated):
        row: dict[str, object] = {
            "target": target,
            "model": one.name,
            "ckpt": one.document["ckpt"],
            "step": one.document["step"],
            "protocol": result.protocol,
        }
        for number in result.numbers():
            row[number.key] = number.value
            if number.deviation is not None:
                row[f"{number.key}_std"] = number.deviation
            row[f"{number.key}_low"], row[f"{number.key}_high"] = number.interval or (None, None)
        columns = list(dict.fromkeys([*columns, *row]))
        rows.append(row)
    return csv_lines([columns, *([row.get(column, "") for column in columns] for row in rows)])


def write_tables(folder: Path, evaluated: Sequence[Evaluated], comparisons: Comparisons) -> list[Path]:
    """Write results.md and results.csv.

    Raises:
        StorageError: one could not be written.
    """
    paths = []
    text = markdown(evaluated, comparisons).encode("utf-8", "surrogateescape")
    for name, content in (("results.md", text), ("results.csv", as_csv(evaluated))):
        with replacing(folder / name) as file:
            file.write(content)
        paths.append(folder / name)
    return paths


def _escaped(text: str) -> str:
    """The text as it is, where Markdown or HTML would make something else of it."""
    for sign in "\\`*[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text
