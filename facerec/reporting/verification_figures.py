"""Figures of results about pairs: ROC and DET of one or several models, distances, hardest pairs.

They look as `facerec.reporting.style` says, and need nothing of pyplot and its global state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from facerec.evaluation.results import HardPair, Result
from facerec.reporting.pair_images import pair_pixels
from facerec.reporting.style import COLOURS, GRAY, figure, frame, paper, save

KINDS: Final = {"genuine": COLOURS[0], "impostor": COLOURS[1]}
_DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_PAIRS: Final = 6  # of each kind in the mosaic, in rows of two

Results = Mapping[str, Result]
"""Of one target, by model."""


def figures_of(name: str, results: Results) -> dict[str, Figure]:
    """The figures of target `name`, by kind.

    ``roc`` and ``det`` have the curves of all models, where there are both kinds of pairs and, for the DET,
    errors to trade off. ``distances``, and ``pairs`` where the images are known, are of one model, whose name
    they begin with where there are several.
    """
    figures = {}
    with paper():
        curves = {model: curve for model, result in results.items() if (curve := result.series("roc"))}
        if curves:
            figures["roc"] = roc_figure(name, results)
            if any(curve["eer"] for curve in curves.values()):
                figures["det"] = det_figure(name, results)
        for model, result in results.items():
            title, start = name, ""
            if len(results) > 1:
                title, start = f"{name}, {model}", re.sub(r"[^\w.=-]+", "_", model) + "_"
            if result.series("histograms"):
                figures[f"{start}distances"] = distance_figure(title, result)
            if result.source is not None:
                figures[f"{start}pairs"] = pair_figure(title, result)
    return figures


def save_figures(folder: Path, name: str, figures: Mapping[str, Figure]) -> list[Path]:
    """Write ``<folder>/<name>_<kind>.png`` for each figure, and return the paths.

    Raises:
        StorageError: a file could not be written.
    """
    paths = []
    with paper():
        for kind, made in figures.items():
            paths += save(made, folder, f"{name}_{kind}", ("png",))
    return paths


def roc_figure(name: str, results: Results) -> Figure:
    """True over false accept rate, the latter logarithmic, down to what the impostor pairs support.

    The numbers at each FAR are written at the curve where there is one alone.
    """
    made = figure(4.4, 3.9)
    axes = made.subplots()
    least, lowest = 1.0, 1.0
    for model, curve, far_V, tar_V, look in _rates(results):
        few = 1 / curve["impostor"]
        numbers = {one.key: one.value for one in results[model].numbers() if one.value is not None}
        label = "ROC" if len(results) == 1 else model
        label += f", AUC {numbers['auc']:.5f}" if "auc" in numbers else ""
        axes.plot(far_V, tar_V, label=label, **look)
        least = min(least, few)
        lowest = min(lowest, float(tar_V[far_V <= few * (1 + 1e-9)].max()))
        if len(results) == 1:
            _write_tars(axes, numbers, few)
            if curve["eer"] is not None:
                _mark_eer(axes, curve["eer"], 1 - curve["eer"], curve["eer"])
    chance = np.geomspace(least, 1, 100)
    axes.plot(chance, chance, color=GRAY, lw=0.9, ls=(0, (1, 2)), label="chance")
    axes.set(xscale="log", xlim=(least, 1), ylim=(max(0.0, np.floor((lowest - 0.02) * 20) / 20), 1.005))
    frame(axes, _title(name, results), "false accept rate (log scale)", "true accept rate")
    return _with_legend(made)


def det_figure(name: str, results: Results) -> Figure:
    """Detection error trade-off: false reject over false accept rate, both logarithmic."""
    made = figure(4.4, 4.2)
    axes = made.subplots()
    least_far, least_frr = 1.0, 1.0
    for model, curve, far_V, tar_V, look in _rates(results):
        few, missed, rate = 1 / curve["impostor"], 1 / curve["genuine"], curve["eer"] or 0.0
        label = "DET" if len(results) == 1 else f"{model}, EER {rate:.5f}"
        axes.plot(far_V, np.maximum(1 - tar_V, missed / 2), label=label, **look)
        least_far, least_frr = min(least_far, few), min(least_frr, missed)
        if len(results) == 1:
            _mark_eer(axes, max(rate, few / 2), max(rate, missed / 2), rate)
    equal = np.array([min(least_far, least_frr), 1.0])
    axes.plot(equal, equal, color=GRAY, lw=0.9, ls=(0, (4, 3)), label="equal rates")
    axes.set(xscale="log", yscale="log", xlim=(least_far, 1), ylim=(least_frr, 1))
    frame(axes, _title(name, results), "false accept rate (log scale)", "false reject rate (log scale)")
    return _with_legend(made)


def _rates(
    results: Results,
) -> Iterator[tuple[str, Mapping[str, Any], np.ndarray, np.ndarray, dict[str, Any]]]:
    """Model, data, FAR, TAR and look of each curve; from TAR 0 on, with a FAR of 0 left of what is shown."""
    for number, (model, result) in enumerate(results.items()):
        if (curve := result.series("roc")) is not None:
            start = 0.5 / curve["impostor"]
            far_V, tar_V = np.append(start, np.maximum(curve["far"], start)), np.append(0, curve["tar"])
            colour, dashes = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
            yield model, curve, far_V, tar_V, {"drawstyle": "steps-post", "color": colour, "ls": dashes}


def _write_tars(axes: Axes, numbers: Mapping[str, float], least: float) -> None:
    """Write the TAR at each FAR beside its point of the curve."""
    for key, tar in numbers.items():
        if not key.startswith("tar_at_far_"):
            continue
        far = float(key.removeprefix("tar_at_far_"))
        left = far / least >= 2.5  # room enough for the number on that side
        axes.plot(far, tar, "o", color=COLOURS[0], ms=4, mec="white", mew=0.7, zorder=4)
        axes.annotate(
            f"{tar:.4f}",
            (far, tar),
            xytext=(-5 if left else 5, 4),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
            color=COLOURS[0],
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
        )


def distance_figure(name: str, result: Result) -> Figure:
    """Histogram of the scores of genuine and impostor pairs, with the mean threshold of the folds."""
    made = figure(4.4, 3.9)
    axes = made.subplots()
    counted = result.series("histograms")
    assert counted is not None
    edges = counted["edges"]
    for kind, colour in KINDS.items():
        if total := counted[kind].sum():
            fraction = counted[kind] / total
            axes.stairs(fraction, edges, fill=True, color=colour, alpha=0.28)
            axes.stairs(fraction, edges, color=colour, lw=1.3, label=f"{total:,} {kind}")
    if (threshold := counted["threshold"]) is not None:
        look: dict[str, Any] = {"color": "black", "lw": 1.0, "ls": (0, (4, 3))}
        axes.axvline(threshold, label=f"threshold {threshold:.3f}", **look)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    x = "cosine"
    if counted["scale"] == "distance":
        x = "squared distance of the unit embeddings"
        there_and_back: Any = (lambda distance: 1 - distance / 2, lambda cosine: 2 - 2 * cosine)
        axes.secondary_xaxis("top", functions=there_and_back).set_xlabel("cosine", labelpad=4)
    frame(axes, _title(name, {"": result}), x, "fraction of each kind's pairs")
    return _with_legend(made)


def pair_figure(name: str, result: Result) -> Figure:
    """Two mosaics: the genuine pairs farthest apart and the impostor pairs nearest to each other."""
    made = figure(6.8, 3.6, layout=None)
    threshold = (result.series("histograms") or {}).get("threshold")
    said = "" if threshold is None else f", mean threshold {threshold:.3f}"
    made.suptitle(f"{name}: hardest pairs{said}", y=0.975)
    titles = {"genuine": "genuine, farthest apart", "impostor": "impostor, nearest to each other"}
    for side, (kind, wrong, pairs) in enumerate(result.hardest(_PAIRS)):
        left = 0.02 + 0.5 * side
        text = f"{titles[kind]} ({wrong:,} judged wrong)"
        made.text(left + 0.23, 0.9, text, color=KINDS[kind], ha="center", va="center")
        for at, pair in enumerate(pairs):
            row, column = divmod(at, 2)
            _draw_pair(made.add_axes((left + 0.235 * column, 0.61 - 0.285 * row, 0.225, 0.2)), result, pair)
    return made


def _draw_pair(axes: Axes, result: Result, pair: HardPair) -> None:
    """Draw both images side by side under their distance."""
    assert result.source is not None
    left, right = pair_pixels(result.source, pair.pair)
    line = np.full((left.shape[0], max(1, left.shape[1] // 28), 3), 255, np.uint8)
    axes.imshow(np.concatenate([left, line, right], axis=1), interpolation="lanczos")
    axes.set_axis_off()
    text = f"pair {pair.pair}: {pair.distance:.3f}" + (", wrong" if pair.wrong else "")
    axes.set_title(text, fontsize=8, pad=2.5)
    if pair.names:
        named = pair.names if len(pair.names) <= 36 else pair.names[:35] + "…"
        look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 6, "parse_math": False}
        axes.text(0.5, -0.03, named, transform=axes.transAxes, **look)


def _mark_eer(axes: Axes, far: float, rate: float, eer: float) -> None:
    label = f"EER {eer:.5f}"
    axes.plot(far, rate, "s", color="white", mec="black", ms=4.5, mew=0.9, zorder=4, ls="", label=label)


def _title(name: str, results: Results) -> str:
    """Target, conditions and, of one model, the headline, so that an image alone can be quoted."""
    first = next(iter(results.values()))
    if len(results) > 1 or first.headline is None:
        return f"{name}: {first.conditions}"
    return f"{name}: {first.headline.phrase} {first.headline.text}\n{first.conditions}"


def _with_legend(made: Figure) -> Figure:
    made.legend(loc="outside lower center", ncols=3 if len(made.axes[0].lines) < 7 else 2, columnspacing=1.6)
    return made
