"""The charts of report.html: curves and histograms as Bokeh figures that the page embeds as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d, SaveTool
from bokeh.plotting import figure

from facerec.errors import counted
from facerec.reporting.evaluated import Evaluated, rows_of

# For light paper; report.css turns keys and charts about where the screen is dark.
COLOURS: Final = ("#0067a3", "#c24f00", "#00805b", "#a8437f", "#9c6b00", "#2f86c1", "#33363a")
_INK, _DIM, _LINE = "#1c1e21", "#5b6066", "#dcdedb"
DASHES: Final = ("", "7 4", "2 3", "10 3 2 3", "1 4", "12 4", "5 2 1 2 1 2")
_FONT: Final = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'


class _Kind(NamedTuple):
    title: str
    text: str
    x: str
    y: str


_FAR: Final = "false accept rate"
_KINDS: Final = {
    "roc": _Kind(
        "ROC",
        "Accepted genuine over accepted impostor pairs; the square is the EER.",
        _FAR,
        "true accept rate",
    ),
    "det": _Kind(
        "DET", "Errors of both kinds against each other, equal on the dotted line.", _FAR, "false reject rate"
    ),
    "cmc": _Kind(
        "CMC",
        "Mated probes whose identity is among the first ranks of the gallery.",
        "rank",
        "fraction identified",
    ),
    "tpir": _Kind("Open set", "Mated probes found at rank 1, over alarms of non-mated ones.", "FPIR", "TPIR"),
    "erc": _Kind(
        "Error versus reject",
        "Genuine pairs not matched, after those of the lowest quality (of either image) were rejected.",
        "fraction rejected",
        "FNMR",
    ),
    "reliability": _Kind(
        "Reliability",
        "Genuine pairs among those of a probability; on the dotted line, probabilities are right.",
        "probability predicted",
        "fraction genuine",
    ),
    "distractors": _Kind(
        "Rank 1 among distractors",
        "Mates nearer to the probe than every distractor.",
        "distractors",
        "rank-1 rate",
    ),
}


@dataclass(frozen=True)
class Line:
    """An entry of a chart's legend; `tags` name the model and the target, by which the page hides it."""

    name: str
    note: str
    colour: int
    dash: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart with its title, a text below it, its legend, and its figure as JSON for Bokeh."""

    kind: str
    title: str
    text: str
    lines: list[Line]
    figure: Any
    tags: tuple[str, ...] = ()
    group: str = "curves"  # the section of the page that shows it


DrawnLines = list[tuple[Line, dict[str, Any]]]


def charts_of(evaluated: Sequence[Evaluated]) -> list[Chart]:
    """The charts of all models and targets: curves first, then a histogram per result."""
    models, targets = _names(evaluated)
    by_kind: dict[str, DrawnLines] = {kind: [] for kind in (*_KINDS, "histograms")}
    for one, target, result in rows_of(evaluated):
        model, at = models.index(one.name), targets.index(target)
        label = target if len(models) == 1 else one.name if len(targets) == 1 else f"{one.name}, {target}"
        for kind, data in result.curves:
            if not len(data.get("y", data.get("far", "known"))):  # nothing to draw
                continue
            eer = data.get("eer")
            note = data.get("note", "") if eer is None else f"EER {eer:.5f}"
            look = (model, at) if len(models) > 1 else (at, 0)
            by_kind.setdefault(kind, []).append(
                (_line(label, *look, (f"model-{model}", f"target-{at}"), note), data)
            )
    if any(data["eer"] for _, data in by_kind["roc"]):  # else there are no errors to trade off
        by_kind["det"] = by_kind["roc"]
    charts = []
    for kind, (title, text, *_) in _KINDS.items():
        if by_kind[kind]:
            draw = _rates if kind in ("roc", "det", "tpir") else _ranks
            lines = [line for line, _ in by_kind[kind]]
            charts.append(Chart(kind, title, text, lines, item(kind, draw(kind, by_kind[kind]))))
    for number, (line, data) in enumerate(by_kind["histograms"]):
        counts = {kind: int(np.sum(data[kind])) for kind in ("genuine", "impostor")}
        keys = [_line(kind, at, note=counted(n, "pair")) for at, (kind, n) in enumerate(counts.items()) if n]
        drawn = item(f"histogram-{number}", _histogram(data, counts))
        charts.append(Chart("histogram", line.name, "", keys, drawn, line.tags, "scores"))
    return charts


def filters_of(evaluated: Sequence[Evaluated]) -> list[tuple[str, list[Line]]]:
    """Boxes that hide models or targets in all charts, where there are several."""
    models, targets = _names(evaluated)
    of_models = [_line(name, at, tags=(f"model-{at}",)) for at, name in enumerate(models)]
    looks = [(-1, at) if len(models) > 1 else (at, 0) for at in range(len(targets))]
    of_targets = [_line(name, *looks[at], (f"target-{at}",)) for at, name in enumerate(targets)]
    return [(name, lines) for name, lines in (("Models", of_models), ("Sets", of_targets)) if len(lines) > 1]


def _names(evaluated: Sequence[Evaluated]) -> tuple[list[str], list[str]]:
    return [one.name for one in evaluated], list(dict.fromkeys(target for _, target, _ in rows_of(evaluated)))


def _line(name: str, colour: int, dash: int = 0, tags: tuple[str, ...] = (), note: str = "") -> Line:
    """A line told apart by its colour, and by its dashes where there are both models and targets."""
    return Line(name, note, colour % len(COLOURS), DASHES[dash % len(DASHES)], tags)


def item(name: str, drawn: Any) -> Any:
    """The figure as JSON, to be put into the element of that id; its button saves it under its name."""
    for tool in drawn.select(SaveTool):
        tool.filename = name
    return json_item(drawn, ID(f"chart-{name}"))


class Axis(NamedTuple):
    label: str
    low: float
    high: float
    log: bool = False

    @property
    def scale(self) -> Literal["log", "linear"]:
        return "log" if self.log else "linear"


def empty_figure(x: Axis, y: Axis) -> Any:
    """An empty figure in the page's type and colours, as wide as the page lets it be."""
    tools = "box_zoom,zoom_in,zoom_out,reset,save"
    scales: dict[str, Any] = {"x_axis_type": x.scale, "y_axis_type": y.scale}
    plot: Any = figure(height=380, sizing_mode="stretch_width", output_backend="svg", tools=tools, **scales)
    plot.x_range, plot.y_range = (Range1d(start=one.low, end=one.high, bounds="auto") for one in (x, y))
    plot.toolbar_location, plot.toolbar.logo = "above", None
    plot.toolbar.stylesheets = ["@media print { :host { visibility: hidden; } }"]
    plot.border_fill_color = plot.background_fill_color = None
    plot.outline_line_color = _DIM
    plot.min_border_left, plot.min_border_right = 58, 14
    # The label of y lies flat above its axis.
    plot.title.text, plot.xaxis.axis_label = (
        f"{one.label} (log)" if one.log else one.label for one in (y, x)
    )
    plot.title.text_font_style = plot.axis.axis_label_text_font_style = "normal"
    plot.title.text_font = plot.axis.axis_label_text_font = plot.axis.major_label_text_font = _FONT
    plot.title.text_font_size = plot.axis.axis_label_text_font_size = "12.5px"
    plot.axis.major_label_text_font_size = "12px"
    plot.title.text_color = plot.axis.axis_label_text_color = _INK
    plot.axis.major_label_text_color = _DIM
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = None
    plot.grid.grid_line_color = _LINE
    plot.xaxis.ticker.desired_num_ticks = 5
    return plot


def add_line(plot: Any, line: Line, columns: dict[str, Any], dots: bool = False) -> Any:
    """Draw one line, and return what to point at."""
    source = ColumnDataSource({name: np.asarray(column, np.float32) for name, column in columns.items()})
    look: dict[str, Any] = {"color": COLOURS[line.colour], "name": line.name}
    drawn = plot.line("x", "y", source=source, line_width=2, line_dash=line.dash, **look)
    drawn.tags = list(line.tags)
    if dots:
        plot.scatter("x", "y", source=source, size=6, **look).tags = drawn.tags
    return drawn


def _rates(kind: str, drawn: DrawnLines) -> Any:
    """ROC, DET, or TPIR over FPIR: steps down to what the impostor trials can show."""
    *_, x, y = _KINDS[kind]
    det = kind == "det"
    least = min(1 / data["impostor"] for _, data in drawn)
    if det:
        low = min(1 / data["genuine"] for _, data in drawn) / 1.5
    else:
        lowest = min(float(np.interp(1 / data["impostor"], data["far"], data["tar"])) for _, data in drawn)
        low = max(0.0, np.floor(20 * lowest - 0.5) / 20)
    plot = empty_figure(Axis(x, least, 1, log=True), Axis(y, low, 1, log=det))
    if det:
        plot.line([least, 1], [least, 1], color=_DIM, line_width=1.2, line_dash=[2, 4])
    scale = drawn[0][1]["scale"]
    pointed = []
    for line, data in drawn:
        far, tar = np.array([least / 10, *data["far"]]), np.array([0.0, *data["tar"]])
        threshold = np.array([*data["threshold"][:1], *data["threshold"]])
        rate = np.maximum(1 - tar, low / 10) if det else tar
        columns = {"x": np.repeat(far, 2)[1:], "y": np.repeat(rate, 2)[:-1]}
        columns["threshold"] = np.repeat(threshold, 2)[:-1]
        pointed.append(add_line(plot, line, columns))
        if data["eer"]:
            mark = [data["eer"]], [data["eer"] if det else 1 - data["eer"]]
            look: dict[str, Any] = {"marker": "square", "size": 8, "fill_color": "white", "line_width": 1.8}
            plot.scatter(*mark, line_color=COLOURS[line.colour], **look).tags = list(line.tags)
    read_values(plot, pointed, f"$name: @y{{%.5f}} at @x{{%.3g}}, {scale} @threshold{{0.000}}")
    return plot


def _ranks(kind: str, drawn: DrawnLines) -> Any:
    """Rates at a few points: CMC, or rank 1 among distractors."""
    *_, x, y = _KINDS[kind]
    log = kind == "distractors"
    points = np.concatenate([data["x"] for _, data in drawn])
    low = max(0.0, np.floor(20 * min(min(data["y"]) for _, data in drawn) - 0.5) / 20)
    top = 1.01
    if kind == "erc":
        low, top = 0.0, 1.06 * max(max(data["y"]) for _, data in drawn)
    ends = (points.min() / 1.4, points.max() * 1.4) if log else (points.min() - 0.5, points.max() + 0.5)
    if kind in ("erc", "reliability"):
        ends = (-0.02, 1.02)
    plot = empty_figure(Axis(x, float(ends[0]), float(ends[1]), log), Axis(y, low, top))
    if kind == "reliability":
        plot.line([0, 1], [0, 1], color=_DIM, line_width=1.2, line_dash=[2, 4])
    pointed = [add_line(plot, line, {"x": data["x"], "y": data["y"]}, dots=True) for line, data in drawn]
    shown = "%.2f" if kind in ("erc", "reliability") else "%d"
    read_values(plot, pointed, f"$name: @y{{%.5f}} at {x} @x{{{shown}}}", policy="nearest")
    return plot


def _histogram(data: dict[str, Any], counts: dict[str, int]) -> Any:
    """Fractions of each kind's pairs, and the mean threshold of the folds where there is one."""
    edges = np.asarray(data["edges"], np.float32)
    fractions = {kind: np.asarray(data[kind]) / n for kind, n in counts.items() if n}
    top = 1.06 * max(float(one.max()) for one in fractions.values())
    scale = "squared distance" if data["scale"] == "distance" else "cosine"
    x = Axis(scale, float(edges[0]), float(edges[-1]))
    plot = empty_figure(x, Axis("fraction of pairs", 0, top))
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] %")
    pointed = []
    for kind, colour in (("genuine", COLOURS[0]), ("impostor", COLOURS[1])):
        if kind in fractions:
            columns = {"left": edges[:-1], "right": edges[1:], "top": fractions[kind].astype(np.float32)}
            source = ColumnDataSource(columns | {"count": np.asarray(data[kind], np.int32)})
            look: dict[str, Any] = {"fill_color": colour, "fill_alpha": 0.22, "line_color": None}
            pointed.append(plot.quad(source=source, bottom=0, name=kind, **look))
            outline = np.append(edges, edges[-1]), np.array([0, *fractions[kind], 0])
            plot.step(*outline, color=colour, line_width=1.5)
    if data["threshold"] is not None:
        plot.vspan(x=[data["threshold"]], line_color=_INK, line_width=1.4, line_dash="6 4")
    read_values(plot, pointed, "$name: @top{0.00 %}, @count{0,0} pairs at @left{0.000} to @right{0.000}")
    return plot


def read_values(
    plot: figure, pointed: list[Any], text: str, policy: Literal["prev", "nearest"] = "prev"
) -> None:
    """Let a reader point at values; `text` is what a curve then says, in Bokeh's marks: ``@y{%.5g}``."""
    tool = HoverTool(renderers=pointed, mode="vline", line_policy=policy, tooltips=f"<div>{text}</div>")
    tool.visible, tool.formatters = False, {"@x": "printf", "@y": "printf"}
    plot.add_tools(tool)
