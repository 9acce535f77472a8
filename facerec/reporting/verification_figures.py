"""Figures of verification results: ROC and DET of one or several models, distances, hardest pairs.

They look as `facerec.reporting.style` says, and need nothing of pyplot and its global state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from facerec.evaluation.metrics.auc import auc
from facerec.evaluation.metrics.eer import eer
from facerec.evaluation.metrics.tar_at_far import tar_at_far
from facerec.evaluation.statistics.separation import Curve, Separation
from facerec.evaluation.verify import VerificationResult
from facerec.reporting.pair_images import HardPair, hardest_pairs, pair_pixels
from facerec.reporting.style import COLOURS, GRAY, figure, frame, paper, save

GENUINE: Final = COLOURS[0]
IMPOSTOR: Final = COLOURS[1]
_DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_ROWS: Final = 3  # of the mosaic of pairs, four pairs each


def figures_of(name: str, result: VerificationResult) -> dict[str, Figure]:
    """All figures of target `name`, by kind: ``roc``, ``det``, ``distances``, and ``pairs`` where the result
    knows its images. ROC and DET need both kinds of pairs, the DET errors to trade off.
    """
    figures = {}
    with paper():
        separation = _separation(result)
        if separation.both_kinds:
            figures["roc"] = roc_figure(name, {"ROC": result})
            if eer(separation):
                figures["det"] = det_figure(name, {"DET": result})
        figures["distances"] = distance_figure(name, result)
        if result.source is not None:
            figures["pairs"] = pair_figure(name, result)
    return figures


def comparison_figures_of(name: str, results: Mapping[str, VerificationResult]) -> dict[str, Figure]:
    """The figures of several models on target `name`, by kind: one ``roc`` and ``det`` with all curves, and
    ``<model>_distances`` and ``<model>_pairs`` of each.
    """
    figures = {}
    with paper():
        curved = {model: result for model, result in results.items() if _separation(result).both_kinds}
        if curved:
            figures["roc"] = roc_figure(name, curved)
            if any(eer(_separation(result)) for result in curved.values()):
                figures["det"] = det_figure(name, curved)
        for model, result in results.items():
            of_model = re.sub(r"[^\w.=-]+", "_", model)
            figures[f"{of_model}_distances"] = distance_figure(f"{name}, {model}", result)
            if result.source is not None:
                figures[f"{of_model}_pairs"] = pair_figure(f"{name}, {model}", result)
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


def roc_figure(name: str, results: Mapping[str, VerificationResult]) -> Figure:
    """True over false accept rate, the latter logarithmic, down to what the impostor pairs support.

    Args:
        name: of the target.
        results: by label; the numbers at each FAR are written at the curve where there is one alone.
    """
    made = figure(4.4, 3.9)
    axes = made.subplots()
    least, lowest = 1.0, 1.0
    for number, (label, result) in enumerate(results.items()):
        separation = _separation(result)
        curve, few, _ = _curve(separation)
        far_V = np.concatenate([[few / 2], np.maximum(curve.far_V, few / 2)])
        tar_V = np.concatenate([[0], curve.tar_V])
        axes.plot(
            far_V, tar_V, drawstyle="steps-post", label=f"{label}, AUC {auc(separation):.5f}", **_line(number)
        )
        least = min(least, few)
        lowest = min(lowest, float(tar_V[far_V <= few * (1 + 1e-9)].max()))
        if len(results) == 1:
            _write_tars(axes, separation, few)
            rate = eer(separation) or 0.0
            _mark_eer(axes, rate, 1 - rate)
    chance = np.geomspace(least, 1, 100)
    axes.plot(chance, chance, color=GRAY, lw=0.9, ls=(0, (1, 2)), label="chance")
    axes.set(xscale="log", xlim=(least, 1), ylim=(max(0.0, np.floor((lowest - 0.02) * 20) / 20), 1.005))
    frame(axes, _title(name, results), "false accept rate (log scale)", "true accept rate")
    return _with_legend(made)


def det_figure(name: str, results: Mapping[str, VerificationResult]) -> Figure:
    """Detection error trade-off: false reject over false accept rate, both logarithmic."""
    made = figure(4.4, 4.2)
    axes = made.subplots()
    least_far, least_frr = 1.0, 1.0
    for number, (label, result) in enumerate(results.items()):
        separation = _separation(result)
        curve, few, missed = _curve(separation)
        far_V = np.concatenate([[few / 2], np.maximum(curve.far_V, few / 2)])
        frr_V = np.maximum(1 - np.concatenate([[0], curve.tar_V]), missed / 2)
        rate = eer(separation) or 0.0
        said = "" if len(results) == 1 else f", EER {rate:.5f}"
        axes.plot(far_V, frr_V, drawstyle="steps-post", label=label + said, **_line(number))
        least_far, least_frr = min(least_far, few), min(least_frr, missed)
        if len(results) == 1:
            _mark_eer(axes, max(rate, few / 2), max(rate, missed / 2), rate)
    equal = np.array([min(least_far, least_frr), 1.0])
    axes.plot(equal, equal, color=GRAY, lw=0.9, ls=(0, (4, 3)), label="equal rates")
    axes.set(xscale="log", yscale="log", xlim=(least_far, 1), ylim=(least_frr, 1))
    frame(axes, _title(name, results), "false accept rate (log scale)", "false reject rate (log scale)")
    return _with_legend(made)


def _line(number: int) -> dict[str, Any]:
    """How the curve of a model is drawn; no two of 28 alike."""
    return {"color": COLOURS[number % len(COLOURS)], "ls": _DASHES[number // len(COLOURS) % len(_DASHES)]}


def _separation(result: VerificationResult) -> Separation:
    return Separation.of(result.distance_N, result.issame_N)


def _curve(separation: Separation) -> tuple[Curve, float, float]:
    """The ROC, and the lowest FAR and FRR above 0 that its pairs can show."""
    curve = separation.curve()
    assert curve is not None
    return curve, 1 / len(separation.impostor_I), 1 / len(separation.genuine_G)


def _write_tars(axes: Axes, separation: Separation, least: float) -> None:
    """The TAR at each FAR that is supported, at its place on the curve."""
    for target, tar in tar_at_far(separation).items():
        far = float(target)
        if tar is None:
            continue
        axes.plot(far, tar, "o", color=GENUINE, ms=4, mec="white", mew=0.7, zorder=4)
        left = far / least >= 2.5  # room enough for the number on that side
        axes.annotate(
            f"{tar:.4f}",
            (far, tar),
            xytext=(-5 if left else 5, 4),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
            color=GENUINE,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
        )


def distance_figure(name: str, result: VerificationResult) -> Figure:
    """Histogram of the distances of genuine and impostor pairs, with the mean threshold of the folds."""
    made = figure(4.4, 3.9)
    axes = made.subplots()
    distance_N, issame_N = result.distance_N, result.issame_N
    low, high = float(distance_N.min()), float(distance_N.max())
    edges = np.linspace(low, high if high > low else low + 0.01, 61)
    for kind, chosen_N, colour in (("genuine", issame_N, GENUINE), ("impostor", ~issame_N, IMPOSTOR)):
        if chosen_N.any():
            share = np.histogram(distance_N[chosen_N], edges)[0] / chosen_N.sum()
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.28)
            axes.stairs(share, edges, color=colour, lw=1.3, label=f"{chosen_N.sum():,} {kind}")
    threshold = f"threshold {result.best_threshold:.3f}"
    axes.axvline(result.best_threshold, color="black", lw=1.0, ls=(0, (4, 3)), label=threshold)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    # between unit vectors d = 2 − 2 cos, and the other way round
    cosine = axes.secondary_xaxis("top", functions=(_cosine_of, _distance_of))
    cosine.set_xlabel("cosine", labelpad=4)
    x, y = "squared distance of the unit embeddings", "share of each kind's pairs"
    frame(axes, _title(name, {"": result}), x, y)
    return _with_legend(made)


def pair_figure(name: str, result: VerificationResult) -> Figure:
    """Two mosaics: the genuine pairs farthest apart and the impostor pairs nearest to each other."""
    made = figure(6.8, 3.6, layout=None)
    made.suptitle(f"{name}: hardest pairs, mean threshold {result.best_threshold:.3f}", y=0.975)
    blocks = zip(("genuine", "impostor"), hardest_pairs(result, 4 * _ROWS // 2), strict=True)
    for side, (kind, pairs) in enumerate(blocks):
        wrong = len(result.wrong_genuine if kind == "genuine" else result.wrong_impostor)
        title = "genuine, farthest apart" if kind == "genuine" else "impostor, nearest to each other"
        colour = GENUINE if kind == "genuine" else IMPOSTOR
        left = 0.02 + 0.5 * side
        made.text(
            left + 0.23, 0.9, f"{title} ({wrong:,} judged wrong)", color=colour, ha="center", va="center"
        )
        for at, pair in enumerate(pairs):
            row, column = divmod(at, 2)
            place = (left + 0.235 * column, 0.6 - 0.285 * row, 0.225, 0.22)
            _draw_pair(made.add_axes(place), result, pair)
    return made


def _draw_pair(axes: Axes, result: VerificationResult, pair: HardPair) -> None:
    """The two images side by side, their distance, and whether they were judged wrong."""
    assert result.source is not None
    left, right = pair_pixels(result.source, pair.pair)
    line = np.full((left.shape[0], max(1, left.shape[1] // 28), 3), 255, np.uint8)
    axes.imshow(np.concatenate([left, line, right], axis=1), interpolation="lanczos")
    axes.set_axis_off()
    said = f"pair {pair.pair}: {pair.distance:.3f}" + (", wrong" if pair.wrong else "")
    axes.set_title(said, fontsize=8, pad=2.5)


def _cosine_of(distance: ArrayLike) -> ArrayLike:
    return 1 - np.asarray(distance) / 2


def _distance_of(cosine: ArrayLike) -> ArrayLike:
    return 2 - 2 * np.asarray(cosine)


def _mark_eer(axes: Axes, far: float, rate: float, eer: float | None = None) -> None:
    label = f"EER {far if eer is None else eer:.5f}"
    axes.plot(far, rate, "s", color="white", mec="black", ms=4.5, mew=0.9, zorder=4, ls="", label=label)


def _title(name: str, results: Mapping[str, VerificationResult]) -> str:
    """What was measured, so that an image alone can be quoted."""
    first = next(iter(results.values()))
    measured = f"{first.pairs:,} pairs, {first.folds} folds, {'flip-TTA' if first.flip else 'no flip'}"
    if len(results) > 1:
        return f"{name}: {measured}"
    return f"{name}: accuracy {first.accuracy:.5f} ± {first.accuracy_std:.5f}\n{measured}"


def _with_legend(made: Figure) -> Figure:
    made.legend(loc="outside lower center", ncols=3 if len(made.axes[0].lines) < 7 else 2, columnspacing=1.6)
    return made
