"""report.html: one self-contained page of what an evaluation found; it fetches nothing, all is escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

import facerec
from facerec.evaluation.results import Caution, HardPair, Number, Table
from facerec.evaluation.statistics.comparison import Comparison
from facerec.reporting.charts import COLOURS, Chart, charts_of, filters_of
from facerec.reporting.evaluated import Evaluated, Row, rows_of
from facerec.reporting.pair_images import data_uri, pair_pixels
from facerec.reporting.tables import Comparisons, matrix, p_text, tables_of

_PAIR_TITLES = {"genuine": "Genuine pairs farthest apart", "impostor": "Impostor pairs nearest to each other"}
_PAIRS = 8  # of each kind, half as many where models are compared


def report_html(evaluated: Sequence[Evaluated], comparisons: Comparisons, *, figures: bool = True) -> str:
    """The page as text.

    Args:
        evaluated: one or more models.
        comparisons: what their paired comparison found on each target; empty for one model.
        figures: figures lie beside the page, and images of pairs shall be in it.
    """
    return page("report.html.j2", charts_of(evaluated), values_of(evaluated, comparisons, figures=figures))


def values_of(
    evaluated: Sequence[Evaluated], comparisons: Comparisons, *, figures: bool = True
) -> dict[str, Any]:
    """What the template says of evaluated models; see `report_html`."""
    rows = rows_of(evaluated)
    found = [one for of_target in comparisons.values() for one in of_target]
    several = len(evaluated) > 1
    return {
        "title": f"{len(evaluated)} models compared" if several else "".join(one.name for one in evaluated),
        "lead": lead(evaluated)[:3],
        "about": _about(evaluated, rows),
        "several": several,
        "models": [one.name for one in evaluated],
        "tables": [
            (labels, [(*row, _cells(labels, row, rows)) for row in group])
            for labels, group in tables_of(evaluated)
        ],
        "notes": _notes(rows),
        "details": _details(rows, several),
        "matrix": matrix(evaluated),
        "comparisons": comparisons,
        "corrected": len(evaluated) > 2,
        "decided": ", ".join(dict.fromkeys(one.decided for one in found if one.first_only is not None)),
        "over": _over(rows),
        "mcnemar": any(one.first_only is not None for one in found),
        "rates": any(one.first_only is None for one in found),
        "deviation": any(number.deviation is not None for row in rows for number in row[2].numbers()),
        "filters": filters_of(evaluated),
        "pair_groups": [_pairs(row, several) for row in rows if row[2].source is not None] if figures else [],
        "cards": _cards(evaluated, rows, several),
        "figures": figures,
    }


def _heading(text: str) -> Markup:
    """The head of a column: it breaks within a long name of a setting, and not within 1e-3."""
    head = re.sub(r"1e-\d+", r'<span class="unbroken">\g<0></span>', str(escape(text)))
    return Markup(head if len(text) < 16 or head != text else re.sub(r"(?<=[._])", "<wbr>", head))


def page(template: str, charts: Sequence[Chart], values: Mapping[str, Any]) -> str:
    """A self-contained page: a template of ``report_files``, with its charts."""
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": _signed, "p": p_text, "verdict": _verdict, "heading": _heading}
    script = _bokeh() + _file("report.js")
    frame = {
        "charts": charts,
        "version": facerec.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "colours": COLOURS,
        "style": Markup(_file("report.css")),
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": Markup(_json([chart.figure for chart in charts])),
    }
    return environment.get_template(template).render(values, **frame)


def _file(name: str) -> str:
    return (files("facerec.reporting") / "report_files" / name).read_text(encoding="utf-8")


@cache
def _bokeh() -> str:
    """The script of the plotting library, without its widgets and its optional parts."""
    library, *_ = Resources(mode="inline", components=["bokeh"]).js_raw
    assert "</script" not in library
    return library + "\n"


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no < can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def lead(evaluated: Sequence[Evaluated]) -> list[str]:
    """The score of each target, or which of several models is best on it."""
    rows, several, lines = rows_of(evaluated), len(evaluated) > 1, []
    for target in dict.fromkeys(target for _, target, _ in rows):
        headlines = [(one.name, result.headline) for one, name, result in rows if name == target]
        scored = [(name, number) for name, number in headlines if number is not None]
        if not scored:
            continue
        lower = scored[0][1].lower_is_better
        _, number = (min if lower else max)(scored, key=lambda pair: pair[1].value or 0.0)
        if several:
            best = [name for name, other in scored if other.value == number.value]
            said = f"best is {best[0]}" if len(best) == 1 else f"best are {' and '.join(best)} alike"
            lines.append(f"{target}: {said}, {number.phrase} {number.value:.5f}.")
        else:
            interval = f", 95 % interval {number.interval_text}" if number.interval_text else ""
            lines.append(f"{target}: {number.phrase} {number.text}{interval}.")
    return lines


def _about(evaluated: Sequence[Evaluated], rows: Sequence[Row]) -> list[str]:
    """The model's backbone and preprocessing, the pairs and the protocol, a line each."""
    lines = []
    if len(evaluated) == 1:
        facts = dict(evaluated[0].facts)
        step = f" at step {facts['Step']}" if "Step" in facts else ""
        lines.append(f"Model: {facts['Backbone']}{step}; images {facts['Preprocessing']}.")
    for target, result in {target: result for _, target, result in rows}.items():
        facts = dict(result.facts())
        for key in ("Pairs", "Probes"):
            if key in facts:
                counted = facts[key].replace(" (", f" {key.lower()} (", 1)
                lines.append(f"{target}: {counted}; {facts['Protocol']}.")
    return lines[:5]


def _cells(labels: Sequence[str], row: Row, rows: Sequence[Row]) -> list[tuple[Number, bool]]:
    """The numbers of a row of a table, and for each True where it is the best of several on its target."""
    rivals = [result.numbers() for _, target, result in rows if target == row[1]]
    cells = []
    for number in row[2].numbers():
        values = [one.value for numbers in rivals for one in numbers if one.label == number.label]
        known = [value for value in values if value is not None]
        best = (min if number.lower_is_better else max)(known, default=None)
        is_best = len(rivals) > 1 and number.value is not None and number.value == best
        cells.append((number, is_best and number.trusted))
    return [cell for label in labels for cell in cells if cell[0].label == label]


def _notes(rows: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """Each note once for its target, and True where it is a warning."""
    pairs = dict.fromkeys((target, note) for _, target, result in rows for note in result.notes)
    return [(target, note[:1].upper() + note[1:], isinstance(note, Caution)) for target, note in pairs]


def _details(rows: Sequence[Row], several: bool) -> list[tuple[str, Table]]:
    """Titles and tables of all results; what several tables say below them, the first one says."""
    said: set[str] = set()
    details = []
    for one, target, result in rows:
        for table in result.tables:
            title = f"{table.title}: {target}, {one.name}" if several else f"{table.title}: {target}"
            details.append((title, table._replace(text="") if table.text in said else table))
            said.add(table.text)
    return details


def _signed(value: float) -> str:
    return f"{value:+.5f}".replace("-", "−")


def _verdict(one: Comparison) -> str:
    """Better only where both the test and the interval say so: the one takes pairs as independent, the other
    need not.
    """
    if one.p_holm is None:
        return "not tested"
    if one.p_holm >= 0.05:
        return "no difference shown"
    if one.difference_interval is not None and one.difference_interval[0] <= 0 <= one.difference_interval[1]:
        return "unclear: the interval holds 0"
    return f"{one.first if (one.difference > 0) != one.lower_is_better else one.second} is better"


def _over(rows: Sequence[Row]) -> str:
    """The units that the intervals of the differences resample, where they are the same on all targets."""
    over = {result.interval_over for _, _, result in rows} - {None}
    return f", over {over.pop()}" if len(over) == 1 else ""


def _pairs(row: Row, several: bool) -> tuple[str, list[tuple[str, str, list[tuple[HardPair, list[str]]]]]]:
    """The hardest pairs of a result with their images: a title, then kind, title and pairs of each kind."""
    one, target, result = row
    assert result.source is not None
    columns = []
    for kind, _, pairs in result.hardest(_PAIRS // 2 if several else _PAIRS):
        if pairs:
            images = [map(data_uri, pair_pixels(result.source, pair.pair)) for pair in pairs]
            shown = [(pair, list(both)) for pair, both in zip(pairs, images, strict=True)]
            columns.append((kind, _PAIR_TITLES[kind], shown))
    return f"{target}, {one.name}" if several else target, columns


def _cards(
    evaluated: Sequence[Evaluated], rows: Sequence[Row], several: bool
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles and facts: a card per model, then one per result."""
    cards = [(f"Model {one.name}", one.facts) for one in evaluated]
    for one, target, result in rows:
        cards.append((f"Set {target}, {one.name}" if several else f"Set {target}", result.facts()))
    return cards
