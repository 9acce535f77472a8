"""report.html of `facerec-data clean`: the images one judges its proposals by, with names and cosines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from facerec.cleaning.decisions import KEEP, KINDS, Decision
from facerec.cleaning.findings import Found
from facerec.errors import DamagedDataError, MissingDataError, counted
from facerec.images.decode import decode
from facerec.images.images import Images, LabelledImages
from facerec.reporting.charts import Axis, Chart, Line, add_line, empty_figure, item, read_values
from facerec.reporting.pair_images import SIDE, data_uri
from facerec.reporting.report import page

_TILES: Final = 60  # of each kind: half of them the clearest, half nearest to the threshold
_BINS: Final = 120
_SECTIONS: Final = {
    "outlier": (
        "Images far from their identity",
        "The image, then the one nearest to the centre of its identity, then that of the nearest other.",
    ),
    "mixed": (
        "Identities of several people",
        "An image of the further person, then the one nearest to the centre of the identity.",
    ),
    "merge": ("Identities that are one person", "The image nearest to the centre of each."),
    "duplicate": ("Copies", "The copy, then the image that is kept."),
    "leak": ("Identities and images of test sets", "Of the set, then of the test."),
    "damaged": ("Images that do not decode", ""),
}


class Tile(NamedTuple):
    """Some images of a decision as ``data:`` addresses (None: cannot be shown), and lines about them."""

    images: list[str | None]
    names: list[str]
    lines: list[str]
    action: str
    changes: bool


class Section(NamedTuple):
    """The findings of one kind."""

    kind: str
    title: str
    text: str
    findings: str
    limit: str
    tiles: list[Tile]


def cleaning_html(
    faces: LabelledImages,
    found: Found,
    decisions: Sequence[Decision],
    facts: Sequence[tuple[str, str]],
    written: bool = True,
) -> str:
    """The page as text.

    Args:
        decisions: those of `found`, in its order, with the actions that are applied.
        facts: names and values about the pack, the model and the result, for the end of the page.
        written: there is a new pack in which they are applied.
    """
    applied = "applied" if written else "to be applied"
    sections = [_section(kind, faces, found, decisions, applied) for kind in _SECTIONS]
    limit = found.limits.get("outlier")
    values = {
        "title": faces.title,
        "lead": [limit.estimate.capitalize() + "."] if limit is not None and limit.estimate else [],
        "about": [faces.describe(), *found.notes],
        "sections": [one for one in sections if one is not None],
        "counts": [(kind, KINDS[kind], *_counts(kind, decisions)) for kind in _SECTIONS],
        "facts": facts,
        "applied_title": applied.capitalize(),
    }
    return page("clean.html.j2", _charts(found), values)


def _counts(kind: str, decisions: Sequence[Decision]) -> tuple[int, int]:
    """Findings of a kind, and how many of them are applied."""
    of_kind = [one for one in decisions if one.kind == kind]
    return len(of_kind), sum(one.action != KEEP for one in of_kind)


def _section(
    kind: str, faces: LabelledImages, found: Found, decisions: Sequence[Decision], applied: str
) -> Section | None:
    numbers = [at for at, one in enumerate(decisions) if one.kind == kind]
    if not numbers:
        return None
    shown = numbers
    if len(numbers) > _TILES:
        from_clearest = sorted(numbers, key=lambda at: _clearness(decisions[at]), reverse=True)
        shown = from_clearest[: _TILES // 2] + from_clearest[-_TILES // 2 :]
    many, chosen = _counts(kind, decisions)
    count = f"{counted(many, 'finding')}, {chosen:,} {applied}"
    if len(shown) < many:
        count += f"; shown are the {_TILES // 2} clearest, then the {_TILES // 2} nearest to the threshold"
    limit = found.limits.get(kind)
    said = "" if limit is None else f"Threshold {limit.least:.3f}: {limit.said}."
    tiles = [_tile(decisions[at], faces, found, found.tests.get(at)) for at in shown]
    return Section(kind, *_SECTIONS[kind], count, said, tiles)


def _clearness(one: Decision) -> float:
    return abs((one.cosine or 0.0) - (one.least or 0.0))


def _tile(one: Decision, faces: LabelledImages, found: Found, test: tuple[Images, int] | None) -> Tile:
    def reference(label: int | None) -> int:
        return -1 if label is None else int(found.reference_C[label])

    shown: list[tuple[Images, int]]
    if test is not None:
        own = one.number if one.image else reference(one.number)
        shown = [(faces, own), test]
    elif one.kind == "merge":
        shown = [(faces, reference(one.number)), (faces, reference(one.other_number))]
    elif one.kind == "duplicate":
        shown = [(faces, one.number), (faces, -1 if one.other_number is None else one.other_number)]
    else:
        centre = reference(int(faces.label_N[one.number]))
        shown = [(faces, one.number), (faces, centre), (faces, reference(one.other_number))]
        shown = shown[: {"outlier": 3, "mixed": 2}.get(one.kind, 1)]
    some = [(images, i) for images, i in shown if i >= 0]
    title = one.image or one.identity
    return Tile(
        [_uri(images, i) for images, i in some],
        [images.name(i) for images, i in some],
        [title, *([f"like {one.other}"] if one.other else []), one.reason],
        f"kept; proposed: {one.proposal}" if one.action == KEEP != one.proposal else one.action,
        one.action != KEEP,
    )


def _uri(images: Images, i: int) -> str | None:
    try:
        return data_uri(decode(images.encoded(i), SIDE))
    except (DamagedDataError, MissingDataError):
        return None


def _charts(found: Found) -> list[Chart]:
    """Cosines with the own centre and with those of others, and the threshold."""
    if not len(found.own_R) or not len(found.impostor_P):
        return []
    low = float(min(found.own_R.min(), found.impostor_P.min()))
    high = float(max(found.own_R.max(), found.impostor_P.max()))
    edges = np.linspace(low, high + 1e-6, _BINS + 1)
    drawn = []
    both = {"own identity": found.own_R, "another identity": found.impostor_P}
    for colour, (name, cosines) in enumerate(both.items()):
        part = np.histogram(cosines, edges)[0] / len(cosines)
        columns = {"x": np.repeat(edges, 2)[1:-1], "y": np.repeat(part, 2)}
        drawn.append((Line(name, f"{len(cosines):,} cosines", colour, "", (f"curve-{colour}",)), columns))
    top = 1.06 * max(float(columns["y"].max()) for _, columns in drawn)
    plot = empty_figure(Axis("cosine with the centre", low, high), Axis("part of the images", 0, top))
    pointed: list[Any] = [add_line(plot, line, columns) for line, columns in drawn]
    if "outlier" in found.limits:
        plot.vspan(x=[found.limits["outlier"].least], line_width=1.4, line_dash="6 4")
    read_values(plot, pointed, "$name: @y{%.4f} at @x{%.3f}")
    text = "Each image with the centre of its identity without it, and with centres of other identities."
    lines = [line for line, _ in drawn]
    return [Chart("cosines", "Cosines with the centres", text, lines, item("cosines", plot))]
