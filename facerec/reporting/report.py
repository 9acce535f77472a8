"""report.html: one self-contained page of what an evaluation found; it fetches nothing, all is escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import facerec
from facerec.evaluation.protocols.verification import VerificationResult
from facerec.evaluation.results import Result
from facerec.evaluation.statistics.comparison import Comparison
from facerec.files import replacing
from facerec.reporting.charts import charts_of
from facerec.reporting.evaluated import Evaluated
from facerec.reporting.pair_images import HardPair, data_uris, hardest_pairs
from facerec.reporting.tables import Row, p_text, rows_of, tables_of

_CHARTS = {
    "roc": ("ROC", "Accepted genuine over accepted impostor pairs; the square is the EER."),
    "det": ("DET", "Errors of both kinds against each other, equal on the dotted line."),
    "cmc": ("CMC", "Mated probes whose person is among the first ranks of the gallery."),
    "tpir": ("Open set", "Mated probes found at rank 1, over alarms of non-mated ones."),
    "distractors": ("Rank 1 among distractors", "Mates nearer to the probe than every distractor."),
}


_SCRIPTS = ("basics.js", "chart.js", "report.js")
_WARNINGS = ("training set", "uneven rest", "all zeros")  # notes that question the numbers themselves
_PAIRS = 8  # of each kind, half as many where models are compared


def write_report(
    path: Path,
    evaluated: Sequence[Evaluated],
    comparisons: Mapping[str, Sequence[Comparison]] | None = None,
    *,
    figures: bool = True,
) -> Path:
    """Write the page; see `report_html`.

    Raises:
        StorageError: it could not be written.
    """
    text = report_html(evaluated, comparisons or {}, figures=figures)
    with replacing(path) as file:
        file.write(text.encode())
    return path


def report_html(
    evaluated: Sequence[Evaluated],
    comparisons: Mapping[str, Sequence[Comparison]],
    *,
    figures: bool = True,
) -> str:
    """The page as text.

    Args:
        evaluated: one or more models.
        comparisons: what their paired comparison found on each target; empty for one model.
        figures: whether figures lie beside the page, and images of pairs shall be in it.
    """
    folder = files("facerec.reporting") / "report_files"
    style, template = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.html.j2")
    )
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    charts = charts_of(evaluated)
    several = len(evaluated) > 1
    rows = rows_of(evaluated)
    places = [kind for kind in _CHARTS if charts["roc" if kind == "det" else kind]]
    if all(not one["eer"] for one in charts["roc"]):  # no errors, nothing to trade off
        places = [kind for kind in places if kind != "det"]
    values = {
        "title": f"{len(evaluated)} models compared" if several else evaluated[0].name,
        "lead": _lead(rows, several),
        "about": _about(evaluated, rows),
        "several": several,
        "tables": [_table(labels, group, evaluated) for labels, group in tables_of(evaluated)],
        "notes": _notes(rows),
        "comparisons": _compared(comparisons),
        "corrected": any(len(found) > 1 for found in comparisons.values()),
        "decided": ", ".join(dict.fromkeys(one.decided for found in comparisons.values() for one in found)),
        "over": _over(rows),
        "deviation": any(number.deviation is not None for row in rows for number in row[2].numbers()),
        "charts": charts,
        "chart_places": [
            dict(zip(("kind", "title", "text"), (kind, *_CHARTS[kind]), strict=True)) for kind in places
        ],
        "histogram_places": [
            {"title": _place(charts["targets"][one["target"]], charts["models"][one["model"]], several)}
            for one in charts["histograms"]
        ],
        "has_threshold": any(one["threshold"] is not None for one in charts["histograms"]),
        "pair_groups": [_pairs(row, several) for row in rows if _has_images(row)] if figures else [],
        "cards": _cards(evaluated, rows, several),
        "figures": figures,
        "version": facerec.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": Markup(_json(charts)),
    }
    return environment.from_string(template).render(values)


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no < can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _place(target: str, model: str, several: bool) -> str:
    return f"{target}, {model}" if several else target


def _lead(rows: Sequence[Row], several: bool) -> list[str]:
    """What a reader should know after five seconds: the score of each set, or who is best on it."""
    lines = []
    for target in dict.fromkeys(target for _, target, _ in rows):
        headlines = [(one.name, result.headline) for one, name, result in rows if name == target]
        scored = [(name, number) for name, number in headlines if number is not None]
        if not scored:
            continue
        _, number = max(scored, key=lambda pair: pair[1].value or 0.0)
        label = number.label if number.label[1:2].isupper() else number.label.lower()
        if several:
            best = [name for name, other in scored if other.value == number.value]
            said = f"best is {best[0]}" if len(best) == 1 else f"best are {' and '.join(best)} alike"
            lines.append(f"{target}: {said}, {label} {number.value:.5f}.")
        else:
            spread = f", 95 % interval {number.interval_text}" if number.interval_text else ""
            lines.append(f"{target}: {label} {number.text}{spread}.")
    return lines[:3]


def _about(evaluated: Sequence[Evaluated], rows: Sequence[Row]) -> list[str]:
    """What must be said with the numbers, in a line: the model's backbone and preprocessing, the pairs, the
    protocol.
    """
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


def _table(labels: Sequence[str], rows: Sequence[Row], evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    made = []
    before = None
    for one, target, result in rows:
        numbers = {number.label: number for number in result.numbers()}
        cells = []
        for label in labels:
            number = numbers[label]
            rivals = [r for _, name, r in rows if name == target]
            cells.append(
                {
                    "label": label,
                    "text": number.text,
                    "interval_text": number.interval_text,
                    "best": len(rivals) > 1
                    and number.value is not None
                    and number.value == _best(label, rivals),
                }
            )
        made.append(
            {
                "target": target,
                "first": target != before,
                "model": one.name,
                "model_number": list(evaluated).index(one),
                "numbers": cells,
            }
        )
        before = target
    return {"caption": "Numbers of each set with their 95 % intervals", "labels": labels, "rows": made}


def _best(label: str, results: Sequence[Result]) -> float | None:
    numbers = [number for result in results for number in result.numbers() if number.label == label]
    known = [number.value for number in numbers if number.value is not None]
    if not known:
        return None
    return min(known) if numbers[0].lower_is_better else max(known)


def _notes(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each note once for its target."""
    pairs = dict.fromkeys((target, note) for _, target, result in rows for note in result.notes)
    return [
        {
            "target": target,
            "text": note[:1].upper() + note[1:] + ".",
            "warning": any(word in note for word in _WARNINGS),
        }
        for target, note in pairs
    ]


def _compared(comparisons: Mapping[str, Sequence[Comparison]]) -> list[dict[str, Any]]:
    made = []
    for target, found in comparisons.items():
        for number, one in enumerate(found):
            interval = one.difference_interval
            made.append(
                {
                    "target": target,
                    "new": number == 0,
                    "first": one.first,
                    "second": one.second,
                    "difference": _signed(one.difference),
                    "interval": "" if interval is None else " to ".join(map(_signed, interval)),
                    "first_only": f"{one.first_only:,}",
                    "second_only": f"{one.second_only:,}",
                    "p": p_text(one.p),
                    "p_holm": p_text(one.p_holm),
                    "verdict": _verdict(one),
                }
            )
    return made


def _signed(value: float) -> str:
    return f"{value:+.5f}".replace("-", "−")


def _verdict(one: Comparison) -> str:
    """Better only where both the test and the interval say so: the one takes pairs as independent, the other
    need not.
    """
    if one.p_holm >= 0.05:
        return "no difference shown"
    if one.difference_interval is not None and one.difference_interval[0] <= 0 <= one.difference_interval[1]:
        return "unclear: the interval holds 0"
    return f"{one.first if one.difference > 0 else one.second} is better"


def _over(rows: Sequence[Row]) -> str:
    """What the intervals of the differences resample, said where it is one thing."""
    over = {result.interval_over for _, _, result in rows if isinstance(result, VerificationResult)} - {None}
    return f", over {over.pop()}" if len(over) == 1 else ""


def _has_images(row: Row) -> bool:
    return isinstance(row[2], VerificationResult) and row[2].source is not None


def _pairs(row: Row, several: bool) -> dict[str, Any]:
    one, target, result = row
    assert isinstance(result, VerificationResult) and result.source is not None
    source = result.source
    count = _PAIRS // 2 if several else _PAIRS
    titles = ("Genuine pairs farthest apart", "Impostor pairs nearest to each other")
    columns = []
    for kind, title, pairs in zip(("genuine", "impostor"), titles, hardest_pairs(result, count), strict=True):
        if pairs:
            shown = [_pair(pair, data_uris(source, pair.pair)) for pair in pairs]
            columns.append({"kind": kind, "title": title, "pairs": shown})
    return {"title": _place(target, one.name, several), "columns": columns}


def _pair(pair: HardPair, images: list[str]) -> dict[str, Any]:
    judged = "same" if pair.genuine is not pair.wrong else "different"
    people = pair.people or ("", "")
    return {
        "number": pair.pair,
        "distance": f"{pair.distance:.3f}",
        "wrong": pair.wrong,
        "judged": f"judged {judged}" + (", wrongly" if pair.wrong else ""),
        "images": images,
        "who": [f", {name}" if name else "" for name in people],
    }


def _cards(evaluated: Sequence[Evaluated], rows: Sequence[Row], several: bool) -> list[dict[str, Any]]:
    cards = [{"title": f"Model {one.name}", "facts": one.facts} for one in evaluated]
    for one, target, result in rows:
        cards.append({"title": f"Set {_place(target, one.name, several)}", "facts": result.facts()})
    return cards
