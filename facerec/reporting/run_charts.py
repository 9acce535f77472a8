"""Charts of numbers over the steps of a run, or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import NumeralTickFormatter

from facerec.reporting.charts import (
    COLOURS,
    DASHES,
    Axis,
    Chart,
    Line,
    add_line,
    empty_figure,
    item,
    read_values,
)
from facerec.reporting.record import Row

POINTS = 1000  # of a curve; more are joined to means of neighbours
_TRAINING = (
    ("loss", "Loss", "loss", "of the batches between two logged steps"),
    ("lr", "Learning rate", "learning rate", "as the schedule sets it"),
    ("accuracy", "Accuracy in training", "accuracy", "of the batches, by the plain cosines"),
    ("grad_norm", "Gradient norm", "norm", "before clipping"),
)
_COSINES = {
    "target_cosine": "own identity",
    "hardest_cosine": "hardest other",
    "other_cosine": "mean of others",
}
_OF_SETS = (
    ("accuracy", "Accuracy of each set"),
    ("accuracy_exact", "Accuracy at the exact threshold"),
    ("auc", "AUC of each set"),
    ("eer", "EER of each set"),
)


def charts_of_run(
    steps: Sequence[Row], evaluations: Sequence[Row], beside: Sequence[Row] = ()
) -> list[Chart]:
    """The charts of a run: of its logged steps, then of its evaluations, those with something to draw.

    `beside` are rows of a reference, of which its numbers are drawn dashed in the same charts.
    """
    charts = []
    for key, title, label, said in _TRAINING:
        log = key in ("loss", "grad_norm")
        charts.append(over_steps(key, title, said, label, {title: (steps, key)}, beside, log=log))
    cosines = {name: (steps, key) for key, name in _COSINES.items()}
    charts.insert(
        3, over_steps("cosines", "Cosines in training", "with the class weights", "cosine", cosines)
    )
    for key, title in _OF_SETS:
        known = dict.fromkeys(name for row in evaluations for name in row)
        names = dict.fromkeys(name.removesuffix(f"/{key}") for name in known if name.endswith(f"/{key}"))
        means = {"mean", "ema/mean"}  # ema: of the averaged weights, a curve beside each
        several = sum(not name.startswith("ema/") for name in names.keys() - means) > 1
        curves = {name: (evaluations, f"{name}/{key}") for name in names if several or name not in means}
        label = "accuracy" if key.startswith("accuracy") else key.upper()
        charts.append(over_steps(f"sets-{key}", title, "", label, curves, beside))
    return [chart for chart in charts if chart is not None]


def over_steps(
    kind: str,
    title: str,
    text: str,
    label: str,
    curves: Mapping[str, tuple[Sequence[Row], str]],
    beside: Sequence[Row] = (),
    *,
    log: bool = False,
    points: int = POINTS,
) -> Chart | None:
    """A chart of curves over steps, each by its name: rows, and the key of its number; None: no numbers.

    Args:
        kind: unique on the page.
        points: of a curve at most.
        label: of the y axis.
        beside: rows of a reference, drawn dashed beside those curves whose number they have.
        log: a logarithmic y axis, where all numbers are above 0 and reach over more than a factor of 10.
    """
    drawn: list[tuple[Line, dict[str, Any]]] = []
    for at, (name, (rows, key)) in enumerate(curves.items()):
        dash = DASHES[at // len(COLOURS) % len(DASHES)]
        for own, of in ((True, rows), (False, beside)):
            known = [(row["step"], row[key]) for row in of if row.get(key) is not None]
            if not known:
                break  # nor is there anything to compare
            x, y = joined(np.asarray(known, np.float64).T, points)
            look = (name, f"{known[-1][1]:.5g}", at % len(COLOURS), dash, (f"curve-{at}",))
            look = look if own else (f"{name}, reference", *look[1:3], DASHES[1], (f"reference-{at}",))
            drawn.append((Line(*look), {"x": x, "y": y}))
    if not drawn:
        return None
    y = np.concatenate([data["y"] for _, data in drawn])
    x = np.concatenate([data["x"] for _, data in drawn])
    low, high = float(y.min()), float(y.max())
    log = log and low > 0 and high > 10 * low
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    ends = (low / 1.2, high * 1.2) if log else (low - room, high + room)
    if low >= 0 and not log:
        ends = (max(0.0, ends[0]), ends[1])
    beyond = 0.02 * float(x.max() - x.min()) or 1.0
    plot = empty_figure(
        Axis("step", float(x.min()) - beyond, float(x.max()) + beyond), Axis(label, *ends, log)
    )
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")  # else 1.000e+5
    few = max(len(data["x"]) for _, data in drawn) <= 30
    pointed = [add_line(plot, line, data, dots=few) for line, data in drawn]
    read_values(plot, pointed, "$name: @y{%.5g} at step @x{%d}", policy="nearest")
    return Chart(kind, title, text, [line for line, _ in drawn], item(kind, plot), group="run")


def joined(points_2N: np.ndarray, points: int = POINTS) -> np.ndarray:
    """The points (x, y), of many the means of so many groups of neighbours."""
    if points_2N.shape[1] <= points:
        return points_2N
    return np.stack([part.mean(axis=1) for part in np.array_split(points_2N, points, axis=1)], axis=1)
