"""sweep.html: runs in a table with the best marked, heatmaps over two settings, and their curves overlaid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from facerec.errors import ConfigError, counted
from facerec.reporting.charts import Chart
from facerec.reporting.report import page
from facerec.reporting.run_charts import over_steps
from facerec.reporting.runs import Fold, Runs

_CURVES = (
    ("loss", "Loss", "loss"),
    ("mean/accuracy", "Accuracy, mean over sets", "accuracy"),
    ("mean/accuracy_exact", "Exact accuracy, mean over sets", "accuracy"),
    ("mean/auc", "AUC, mean over sets", "AUC"),
)
_POINTS = 20_000  # of all curves of a chart together


class Heatmap(NamedTuple):
    """A number over two settings; cells of a row are text and shade (0 … 1), None where no run is."""

    x: str
    y: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, float, bool] | None]]]


def sweep_html(runs: Runs, name: str, axes: Sequence[str] = ()) -> str:
    """The page as text; `axes` as `write_sweep` takes them."""
    best = runs.best
    of_sets = {f"{name}/{runs.judged_by}" for name in runs.targets}
    values: dict[str, Any] = {
        "title": f"{counted(len(runs.records), 'run')} compared",
        "lead": _lead(runs),
        "about": [
            f"{name}: {counted(len(runs.folds), 'setting')} of {', '.join(runs.varied) or 'one kind'}."
        ],
        "settings": list(runs.varied),
        "columns": {
            key: title if key in of_sets else title[:1].upper() + title[1:]
            for key, title in runs.columns.items()
        },
        "judged": runs.column,
        "rows": [_row(runs, fold, fold is best) for fold in runs.folds],
        "seeds": any(len(fold.names) > 1 for fold in runs.folds),
        "heatmaps": heatmaps(runs, axes),
        "judged_by": runs.columns[runs.column],
        "filters": [],
    }
    charts = _charts(runs)
    if charts and len(charts[0].lines) > 1:
        widest = max(charts, key=lambda chart: len(chart.lines))
        values["filters"] = [("Runs", widest.lines)]
    return page("sweep.html.j2", charts, values)


def heatmaps(runs: Runs, axes: Sequence[str] = ()) -> list[Heatmap]:
    """A heatmap for each two settings with several values, those of `axes` first.

    Where other settings vary, too, a cell is the mean over them.

    Raises:
        ConfigError: `axes` are not two settings that vary.
    """
    values = {key: list(dict.fromkeys(fold.settings[key] for fold in runs.folds)) for key in runs.varied}
    keys = [key for key in values if key != "seed" and len(values[key]) > 1]
    if axes and (len(axes) != 2 or not set(axes) <= set(keys)):
        raise ConfigError("--heatmap", ",".join(axes), f"must be two of those that vary: {', '.join(keys)}")
    keys.sort(key=lambda key: -len(values[key]))
    pairs = list(itertools.combinations(keys, 2))
    pairs.sort(key=lambda pair: set(pair) != set(axes))
    return [_heatmap(runs, x, y) for x, y in pairs]


def _heatmap(runs: Runs, x: str, y: str) -> Heatmap:
    cells: dict[tuple[str, str], list[float]] = {}
    for fold in runs.folds:
        mean = fold.mean(runs.column)
        if mean is not None:
            cells.setdefault((fold.settings[x], fold.settings[y]), []).append(mean)
    means = {place: float(np.mean(found)) for place, found in cells.items()}
    low, high = min(means.values(), default=0.0), max(means.values(), default=0.0)
    best = low if runs.lower_is_better else high

    def cell(place: tuple[str, str]) -> tuple[str, float, bool] | None:
        if place not in means:
            return None
        part = (means[place] - low) / (high - low) if high > low else 0.0
        shade = round(1 - part if runs.lower_is_better else part, 3)
        return f"{means[place]:.5f}", shade, means[place] == best

    columns, rows = (sorted({fold.settings[key] for fold in runs.folds}, key=_in_order) for key in (x, y))
    return Heatmap(x, y, columns, [(row, [cell((column, row)) for column in columns]) for row in rows])


def _in_order(text: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _lead(runs: Runs) -> list[str]:
    best, failed = runs.best, list(runs.failed)
    lines = []
    if best is not None:
        settings = ", ".join(f"{key}={value}" for key, value in best.settings.items() if key != "seed")
        said = f"Best by {runs.columns[runs.column]}: run {','.join(best.names)}"
        lines.append(f"{said}{f' ({settings})' if settings else ''}, {best.text(runs.column)}.")
    if failed:
        lines.append(f"Without results: {', '.join(failed)}.")
    return lines


def _row(runs: Runs, fold: Fold, best: bool) -> dict[str, Any]:
    intervals = {column: fold.interval(column) or () for column in runs.columns}
    return {
        "name": ", ".join(fold.names),
        "best": best,
        "settings": list(fold.settings.items()),
        "cells": [
            (column, fold.text(column), "–".join(f"{end:.5f}" for end in ends))
            for column, ends in intervals.items()
        ],
        "time": fold.time,
        "cost": fold.cost,
        "state": fold.state,
    }


def _charts(runs: Runs) -> list[Chart]:
    """Curves of all runs, the best first."""
    ordered = [(name, fold.settings, runs.records[name]) for fold in runs.folds for name in fold.names]
    points = max(30, _POINTS // max(len(ordered), 1))
    charts = []
    for key, title, label in _CURVES:
        curves = {}
        for name, settings, record in ordered:
            said = ", ".join(f"{setting}={value(record)}" for setting, value in runs.varied.items())
            rows = record.steps if key == "loss" else record.evaluations
            curves[f"{name}: {said}" if settings else name] = (rows, key)
        charts.append(
            over_steps(key.replace("/", "-"), title, "", label, curves, log=key == "loss", points=points)
        )
    return [chart for chart in charts if chart is not None]
