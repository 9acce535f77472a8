"""Figures of a verification result: ROC, DET, distances of genuine and impostor pairs, pairs judged wrong.

They are plain `matplotlib.figure.Figure` objects on the Agg canvas; pyplot and its global state are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from facerec.checkpoint import replacing
from facerec.data.decode import decode
from facerec.evaluation.embedding import PairSet
from facerec.evaluation.metrics import FAR_TARGETS, Separation
from facerec.evaluation.verification import VerificationResult

# Colours that people with any colour vision can tell apart (Okabe and Ito).
GENUINE: Final = "#0072B2"
IMPOSTOR: Final = "#D55E00"
_GRAY: Final = "#5f6368"
_DPI: Final = 200
_SHOWN: Final = 6  # pairs a column of the picture of errors


def figures_of(name: str, result: VerificationResult) -> dict[str, Figure]:
    """All figures of target `name`, by kind: ``roc``, ``det``, ``distances``, and ``errors`` where the
    result knows its pictures and there are errors. ROC and DET need both kinds of pairs.
    """
    figures = {}
    if result.auc is not None:
        figures["roc"] = roc_figure(name, result)
        if result.eer:  # without any error there is nothing to trade off
            figures["det"] = det_figure(name, result)
    figures["distances"] = distance_figure(name, result)
    if result.source is not None and len(result.wrong_genuine) + len(result.wrong_impostor):
        figures["errors"] = error_figure(name, result)
    return figures


def save_figures(folder: str | Path, name: str, result: VerificationResult) -> list[Path]:
    """Write ``<folder>/<name>_<kind>.png`` for each of `figures_of`, and return the paths.

    Raises:
        StorageError: a file could not be written.
    """
    paths = []
    for kind, figure in figures_of(name, result).items():
        path = Path(folder) / f"{name}_{kind}.png"
        with replacing(path) as file:
            figure.savefig(file, dpi=_DPI, format="png")
        paths.append(path)
    return paths


def roc_figure(name: str, result: VerificationResult) -> Figure:
    """True over false accept rate, the latter logarithmic, down to what the impostor pairs support."""
    figure, axes = _figure(4.4, 3.9)
    separation = Separation.of(result.distance_N, result.issame_N)
    far_V, tar_V = separation.roc()
    least = 1 / len(separation.impostor_I)
    axes.plot(
        np.clip(far_V, least / 2, 1),
        tar_V,
        drawstyle="steps-post",
        color=GENUINE,
        lw=1.6,
        label=f"ROC, AUC {result.auc:.5f}",
    )
    chance = np.geomspace(least, 1, 100)
    axes.plot(chance, chance, color=_GRAY, lw=0.9, ls=(0, (1, 2)), label="chance")
    for target in FAR_TARGETS:
        far, tar = float(target), result.tar_at_far[target]
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
            fontsize=7.5,
            color=GENUINE,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
        )
    assert result.eer is not None
    _mark_eer(axes, result.eer, 1 - result.eer)
    lowest = tar_V[np.searchsorted(far_V, least)]
    axes.set(xscale="log", xlim=(least, 1), ylim=(max(0.0, np.floor((lowest - 0.02) * 20) / 20), 1.005))
    return _finished(figure, axes, name, result, "false accept rate (log scale)", "true accept rate")


def det_figure(name: str, result: VerificationResult) -> Figure:
    """Detection error trade-off: false reject over false accept rate, both logarithmic."""
    figure, axes = _figure(4.4, 4.2)
    separation = Separation.of(result.distance_N, result.issame_N)
    far_V, tar_V = separation.roc()
    least_far, least_frr = 1 / len(separation.impostor_I), 1 / len(separation.genuine_G)
    axes.plot(
        np.clip(far_V, least_far / 2, 1),
        np.clip(1 - tar_V, least_frr / 2, 1),
        drawstyle="steps-post",
        color=GENUINE,
        lw=1.6,
        label="DET",
    )
    equal = np.array([min(least_far, least_frr), 1.0])
    axes.plot(equal, equal, color=_GRAY, lw=0.9, ls=(0, (4, 3)), label="equal rates")
    assert result.eer is not None
    _mark_eer(axes, max(result.eer, least_far / 2), max(result.eer, least_frr / 2), result.eer)
    axes.set(xscale="log", yscale="log", xlim=(least_far, 1), ylim=(least_frr, 1))
    return _finished(
        figure, axes, name, result, "false accept rate (log scale)", "false reject rate (log scale)"
    )


def distance_figure(name: str, result: VerificationResult) -> Figure:
    """Histogram of the distances of genuine and impostor pairs, with the mean threshold of the folds."""
    figure, axes = _figure(4.4, 3.9)
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
    cosine.set_xlabel("cosine", fontsize=9, labelpad=4)
    cosine.tick_params(labelsize=8, length=3, width=0.7)
    return _finished(
        figure,
        axes,
        name,
        result,
        "squared distance of the unit embeddings",
        "share of each kind's pairs",
    )


def error_figure(name: str, result: VerificationResult) -> Figure:
    """The pairs on the wrong side of their fold's threshold: the nearest to it and the farthest."""
    assert result.source is not None, "this result was not made from pictures"
    figure = _canvas(6.6, 5.6)
    left, right = figure.subfigures(1, 2, wspace=0.04)  # type: ignore[misc]
    kinds = (
        ("genuine pairs called different", result.wrong_genuine, GENUINE),
        ("impostor pairs called same", result.wrong_impostor, IMPOSTOR),
    )
    for block, (title, wrong, colour) in zip((left, right), kinds, strict=True):
        block.suptitle(f"{len(wrong):,} {title}", fontsize=9.5, color=colour, y=0.925)
        grid = block.subplots(_SHOWN, 2, gridspec_kw={"wspace": 0.1, "hspace": 0.28})
        block.subplots_adjust(left=0.04, right=0.96, top=0.845, bottom=0.03)
        for column, (caption, pairs) in enumerate(
            (("nearest the threshold", wrong[:_SHOWN]), ("farthest from it", wrong[::-1][:_SHOWN]))
        ):
            grid[0, column].set_title(caption, fontsize=8, color=_GRAY, pad=12)
            for row in range(_SHOWN):
                axes = grid[row, column]
                axes.set_axis_off()
                if row < len(pairs):
                    pair = int(pairs[row])
                    axes.imshow(_pair_picture(result.source, pair), interpolation="lanczos")
                    axes.text(
                        0.5,
                        1.04,
                        f"pair {pair}: {result.distance_N[pair]:.3f}",
                        transform=axes.transAxes,
                        ha="center",
                        va="bottom",
                        fontsize=6.5,
                    )
    figure.suptitle(
        f"{name}: pairs judged wrong, mean threshold {result.best_threshold:.3f}", fontsize=10.5, y=0.985
    )
    return figure


def _pair_picture(source: PairSet, pair: int) -> np.ndarray:
    """The two pictures of a pair side by side, a white line between them."""
    both = [source.pictures[int(source.index_2N[2 * pair + side])] for side in (0, 1)]
    left, right = (one if getattr(one, "ndim", 1) == 3 else decode(one) for one in both)
    line = np.full((left.shape[0], max(1, left.shape[1] // 28), 3), 255, np.uint8)
    return np.concatenate([left, line, right], axis=1)


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _canvas(width, height)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.grid(which="major", color="#d9dce0", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=3, width=0.7)
    axes.tick_params(which="minor", length=1.5, width=0.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.7)
    return figure, axes


def _cosine_of(distance: ArrayLike) -> ArrayLike:
    return 1 - np.asarray(distance) / 2


def _distance_of(cosine: ArrayLike) -> ArrayLike:
    return 2 - 2 * np.asarray(cosine)


def _mark_eer(axes: Axes, far: float, rate: float, eer: float | None = None) -> None:
    label = f"EER {far if eer is None else eer:.5f}"
    axes.plot(far, rate, "s", color="white", mec="black", ms=4.5, mew=0.9, zorder=4, ls="", label=label)


def _finished(figure: Figure, axes: Axes, name: str, result: VerificationResult, x: str, y: str) -> Figure:
    """Labels, legend, and a title that says what was measured, so that a picture alone can be quoted."""
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    flip = "flip-TTA" if result.flip else "no flip"
    accuracy = f"accuracy {result.accuracy:.5f} ± {result.accuracy_std:.5f}"
    axes.set_title(
        f"{name}: {accuracy}\n{result.pairs:,} pairs, {result.folds} folds, {flip}",
        fontsize=9,
        linespacing=1.5,
        pad=8,
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, columnspacing=1.6)
    return figure
