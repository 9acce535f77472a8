"""k-fold accuracy of pairs: a threshold chosen on the other folds, applied to the fold.

A pair is called "same" at threshold t where d < t. All candidates of all folds are judged in one pass: every
pair falls into one cell between two neighbouring candidates, and sums over cells give the accuracy of each
candidate.

Shape suffixes: N pairs, F folds, J cells; "2" is impostor, genuine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from facerec.errors import require
from facerec.evaluation.statistics.separation import Bools, Floats, Ints

Thresholds = Literal["grid", "exact"]

USUAL_FOLDS = 10  # of every published number
GRID_J = np.arange(0, 4, 0.01)
"""The candidates of the published scripts for squared distances of unit vectors: 0, 0.01, …, 3.99."""


@dataclass(frozen=True)
class Folds:
    """The cross-validation of one threshold, an entry per fold; `fold_N` is the fold of each pair."""

    accuracy_F: Floats
    threshold_F: Floats
    fold_N: Ints

    @property
    def accuracy(self) -> float:
        """Mean of the folds' accuracies, 0 … 1."""
        return float(np.mean(self.accuracy_F))

    @property
    def accuracy_std(self) -> float:
        """Population standard deviation of the folds' accuracies."""
        return float(np.std(self.accuracy_F))

    @property
    def threshold(self) -> float:
        """Mean of the folds' thresholds."""
        return float(np.mean(self.threshold_F))


def fold_of(pairs: int, folds: int) -> Ints:
    """The fold of each of `pairs` pairs: contiguous blocks in file order, sizes as scikit-learn's unshuffled
    ``KFold``: where `pairs` is not a multiple of `folds`, the first ``pairs % folds`` folds have one more.

    Raises:
        ConfigError: unless 2 ≤ `folds` ≤ `pairs`.
    """
    bounds = f"must be between 2 and the number of pairs, here {pairs}"
    require(2 <= folds <= pairs, "eval.folds", folds, bounds)
    size_F = np.full(folds, pairs // folds)
    size_F[: pairs % folds] += 1
    return np.repeat(np.arange(folds), size_F)


def cross_validate(
    distance_N: Floats, issame_N: Bools, folds: int | Ints = 10, thresholds: Thresholds = "grid"
) -> Folds:
    """Accuracy per fold of the first (lowest) threshold with the highest accuracy on the other folds.

    Args:
        distance_N: distance of each pair, finite.
        issame_N: True for genuine pairs.
        folds: number of folds, see `fold_of`; or the fold of each pair, where a protocol gives it.
        thresholds: the candidates. ``grid``: 0, 0.01, …, 3.99, as published. ``exact``: all thresholds that
            can differ on the other folds, that is the midpoints of their sorted distances (and one below and
            one above them all); the fold's own distances have no say.

    Raises:
        ConfigError: unless 2 ≤ `folds` ≤ N.
    """
    fold_N, count = fold_numbers(len(distance_N), folds)
    search = threshold_search(distance_N, thresholds)
    cell_N = (fold_N * 2 + issame_N) * search.cells + search.cell(distance_N)
    count_F2J = np.bincount(cell_N, minlength=count * 2 * search.cells).reshape(count, 2, search.cells)
    accuracy_F, threshold_F = search.choose(count_F2J)
    return Folds(accuracy_F, threshold_F, fold_N)


def fold_numbers(pairs: int, folds: int | Ints) -> tuple[Ints, int]:
    """The fold of each pair, from 0, and how many there are."""
    if isinstance(folds, int | np.integer):
        return fold_of(pairs, int(folds)), int(folds)
    names, fold_N = np.unique(folds, return_inverse=True)
    require(len(fold_N) == pairs, "folds", len(fold_N), f"must be a fold for each of the {pairs} pairs")
    require(len(names) >= 2, "folds", names.tolist(), "must name two folds or more")
    return fold_N, len(names)


def threshold_search(distance_N: Floats, thresholds: str) -> _Grid | _Exact:
    """The search over the candidates that `thresholds` names, for these distances.

    It puts distances into `cells`, and chooses each fold's threshold from the counts of the cells.
    """
    require(thresholds in ("grid", "exact"), "eval.thresholds", thresholds, "must be grid or exact")
    return _Grid() if thresholds == "grid" else _Exact(distance_N)


def _right(count_F2J: Ints) -> Ints:
    """Pairs judged right where cells 0 … j are called same, for each j; (…, F, J)."""
    same = np.cumsum(count_F2J, axis=-1, dtype=np.int32)
    return same[..., 1, :] - same[..., 0, :] + same[..., 0, -1:]


def _at(values_FJ: Ints, index_F: Ints) -> Ints:
    return np.take_along_axis(values_FJ, index_F[..., None], axis=-1)[..., 0]


class _Grid:
    """Fixed candidates. The cell of a distance is the first candidate above it; the last: there is none."""

    cells = len(GRID_J) + 1

    def cell(self, distance_N: Floats) -> Ints:
        return np.searchsorted(GRID_J, distance_N, side="right")

    def choose(self, count_F2J: Ints) -> tuple[Floats, Floats]:
        right_FJ = _right(count_F2J)[..., :-1]
        elsewhere_FJ = right_FJ.sum(axis=-2, keepdims=True, dtype=np.int32) - right_FJ
        best_F = elsewhere_FJ.argmax(axis=-1)  # the first of equal ones, as the published scripts do
        return _at(right_FJ, best_F) / count_F2J.sum(axis=(-2, -1)), GRID_J[best_F]


class _Exact:
    """Midpoints of the other folds' sorted distances. Cell 0 is below all; then a cell per distance."""

    def __init__(self, distance_N: Floats) -> None:
        value = np.unique(distance_N.astype(np.float64))
        self.value_J = np.concatenate([[-np.inf], value])
        self.cells = len(self.value_J)

    def cell(self, distance_N: Floats) -> Ints:
        return np.searchsorted(self.value_J, distance_N)

    def choose(self, count_F2J: Ints) -> tuple[Floats, Floats]:
        elsewhere_F2J = count_F2J.sum(axis=-3, keepdims=True, dtype=np.int32) - count_F2J
        low_F = _right(elsewhere_F2J).argmax(axis=-1)
        # The next distance that the other folds have: where their running count exceeds the best cell's.
        seen_FJ = np.cumsum(elsewhere_F2J.sum(axis=-2, dtype=np.int32), axis=-1, dtype=np.int32)
        beyond_FJ = seen_FJ > _at(seen_FJ, low_F)[..., None]
        low = self.value_J[low_F]
        high = np.where(
            beyond_FJ[..., -1], self.value_J[beyond_FJ.argmax(axis=-1)], np.nextafter(low, np.inf)
        )
        # Halfway from -inf is nowhere: the lowest distance itself, which nothing is below. The midpoint of
        # adjacent floating-point numbers can round down onto the lower one, which would not be below it.
        middle = (low + high) / 2
        threshold_F = np.where(middle > low, middle, high)
        judged_F = np.searchsorted(self.value_J, threshold_F) - 1  # the last cell below the threshold
        return _at(_right(count_F2J), judged_F) / count_F2J.sum(axis=(-2, -1)), threshold_F
