"""Bootstrap intervals of verification numbers: people resampled where they are known, else pairs.

A resample is a weight for each pair, so that nothing is copied. Over pairs, the weight is how often the pair
was drawn, within its fold. Over people, people are drawn with replacement: a genuine pair weighs as often as
its one person was drawn, an impostor pair the product of its two people's numbers, since each copy of the one
meets each copy of the other (A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007;
R. M. Bolle, N. K. Ratha, S. Pankanti, "Error analysis of pattern recognition systems: the subsets bootstrap",
CVIU 93, 2004, for why pairs of the same people must not count as independent).

Shape suffixes: N pairs, I people, R resamples (of a block), F folds, J cells, V vertices of a ROC curve; "2"
is impostor, genuine, or the two images of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from facerec.errors import UserError
from facerec.evaluation.statistics.folds import Ints, Thresholds, fold_numbers, threshold_search
from facerec.evaluation.statistics.metrics import FAR_TARGETS, Bools, Floats

_CELLS = 1_000_000  # of a block's largest array: 4 to 8 MB

Draw = Callable[[int], Ints]
"""Weights of all pairs in so many resamples, (R, N)."""


def pair_draw(fold_N: Ints, rng: np.random.Generator) -> Draw:
    """Pairs drawn with replacement within their folds, so that folds keep their sizes."""
    order = np.argsort(fold_N, kind="stable")
    size_F = np.bincount(fold_N)
    stop_N = np.repeat(np.cumsum(size_F), size_F)
    start_N = stop_N - np.repeat(size_F, size_F)

    def draw(resamples: int) -> Ints:
        drawn_RN = rng.integers(start_N, stop_N, size=(resamples, len(fold_N)), dtype=np.int64)
        weight_RN = np.empty((resamples, len(fold_N)), np.int32)
        for row, drawn_N in enumerate(drawn_RN):
            weight_RN[row, order] = np.bincount(drawn_N, minlength=len(fold_N))
        return weight_RN

    return draw


def identity_draw(identity_N2: Ints, rng: np.random.Generator) -> Draw:
    """People drawn with replacement from all people of the set.

    Args:
        identity_N2: number of each image's person, 0 … I − 1.
        rng: where the draws come from.
    """
    people = int(identity_N2.max()) + 1
    first_N, second_N = identity_N2[:, 0], identity_N2[:, 1]
    genuine_N = first_N == second_N

    def draw(resamples: int) -> Ints:
        times_RI = rng.multinomial(people, np.full(people, 1 / people), size=resamples).astype(np.int32)
        times_RN = times_RI[:, first_N]
        return times_RN * np.where(genuine_N, np.int32(1), times_RI[:, second_N])

    return draw


def numbered_people(identity_2N: npt.ArrayLike, issame_N: Bools) -> Ints:
    """People's names or numbers as numbers from 0, int64 (N, 2).

    Raises:
        UserError: there is not one for each image, or they contradict the answers.
    """
    given = np.asarray(identity_2N).reshape(-1)
    if len(given) != 2 * len(issame_N):
        raise UserError(f"{len(given)} identities do not fit {len(issame_N)} pairs: each image needs one")
    identity_N2 = np.unique(given, return_inverse=True)[1].reshape(-1, 2)
    contradicted = np.flatnonzero((identity_N2[:, 0] == identity_N2[:, 1]) != issame_N)
    if len(contradicted):
        pair = int(contradicted[0])
        said = "one person" if issame_N[pair] else "two people"
        one, other = given[2 * pair : 2 * pair + 2]
        raise UserError(f"pair {pair} is of {said} by its answer, but its identities are {one} and {other}")
    return identity_N2


def bootstrap(
    distance_N: Floats,
    issame_N: Bools,
    folds: int | Ints = 10,
    thresholds: Thresholds = "grid",
    *,
    resamples: int,
    seed: int,
    identity_N2: Ints | None = None,
    far_targets: Sequence[str] = FAR_TARGETS,
) -> dict[str, Floats]:
    """The numbers of `resamples` resamples, (resamples,) each, NaN where a resample does not define one.

    In each resample the thresholds are chosen anew, so the spread includes that of the threshold search; a
    fold without pairs, or without pairs in the others to choose its threshold by, does not count.

    Args:
        distance_N, issame_N, folds, thresholds: as `statistics.folds.cross_validate` takes them.
        resamples: how many.
        seed: of the draws.
        identity_N2: people of each pair's images, from `numbered_people`; None: pairs are resampled.
        far_targets: of the TARs.

    Returns:
        ``accuracy``, ``auc``, ``eer`` and one for each of `far_targets`.
    """
    fold_N, count = fold_numbers(len(distance_N), folds)
    rng = np.random.default_rng(seed)
    draw = pair_draw(fold_N, rng) if identity_N2 is None else identity_draw(identity_N2, rng)
    search = threshold_search(distance_N, thresholds)
    cell_N = (fold_N * 2 + issame_N) * search.cells + search.cell(distance_N)
    cells = count * 2 * search.cells
    curves = _Curves(distance_N, issame_N)
    values: dict[str, Floats] = {
        name: np.empty(resamples) for name in ("accuracy", "auc", "eer", *far_targets)
    }
    block = max(1, _CELLS // max(cells, len(distance_N)))
    for start in range(0, resamples, block):
        at = slice(start, min(start + block, resamples))
        weight_RN = draw(at.stop - start)
        rows = len(weight_RN)
        flat = (np.arange(rows)[:, None] * cells + cell_N).reshape(-1)
        count_RF2J = np.bincount(flat, weight_RN.reshape(-1), minlength=rows * cells).astype(np.int32)
        with np.errstate(invalid="ignore"):  # 0 / 0 in a fold that has no pairs
            accuracy_RF, _ = search.choose(count_RF2J.reshape(rows, count, 2, search.cells))
        size_RF = count_RF2J.reshape(rows, count, -1).sum(axis=-1)
        judged_RF = (size_RF > 0) & (size_RF < size_RF.sum(axis=-1, keepdims=True))
        values["accuracy"][at] = _mean_of_defined(accuracy_RF, judged_RF)
        for name, value_R in curves.of(weight_RN, far_targets).items():
            values[name][at] = value_R
    return values


def interval(value_R: Floats, coverage: float = 0.95) -> tuple[float, float] | None:
    """The central percentile interval of bootstrap values; None where no resample defined one."""
    defined = value_R[np.isfinite(value_R)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def rate_intervals(
    hit_XN: Bools, cluster_N: npt.ArrayLike, *, resamples: int, seed: int
) -> list[tuple[float, float] | None]:
    """95 % intervals of shares of hits among N trials, over the people (clusters) the trials belong to.

    Thresholds and galleries are held fixed: the spread is that of the probes alone.

    Args:
        hit_XN: X rates, a row of hits each.
        cluster_N: whose each trial is, numbers or names.
        resamples: 0 gives None for each.
        seed: of the draws.
    """
    if not resamples or hit_XN.shape[1] == 0:
        return [None] * len(hit_XN)
    number_N = np.unique(np.asarray(cluster_N), return_inverse=True)[1]
    size_I = np.bincount(number_N)
    hits_XI = np.stack([np.bincount(number_N, hit_N, minlength=len(size_I)) for hit_N in hit_XN])
    people = len(size_I)
    rng = np.random.default_rng(seed)
    rate_XR = np.empty((len(hit_XN), resamples))
    step = max(1, _CELLS // people)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        times_RI = rng.multinomial(people, np.full(people, 1 / people), size=stop - start)
        rate_XR[:, start:stop] = (hits_XI @ times_RI.T) / (times_RI @ size_I)
    return [interval(rate_R) for rate_R in rate_XR]


class _Curves:
    """AUC, EER and TAR@FAR of weighted pairs, sorted once; as `metrics.Separation` has
    them."""

    def __init__(self, distance_N: Floats, issame_N: Bools) -> None:
        self.order = np.argsort(distance_N, kind="stable")
        self.same_N = issame_N[self.order].astype(np.int32)
        ordered = distance_N[self.order]
        self.last_V = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def of(self, weight_RN: Ints, far_targets: Sequence[str]) -> dict[str, Floats]:
        ordered_RN = weight_RN[:, self.order]
        genuine_RV = self._running(ordered_RN * self.same_N)
        impostor_RV = self._running(ordered_RN * (1 - self.same_N))
        with np.errstate(invalid="ignore", divide="ignore"):
            tar_RV = genuine_RV / genuine_RV[:, -1:]
            far_RV = impostor_RV / impostor_RV[:, -1:]
        defined_R = (genuine_RV[:, -1] > 0) & (impostor_RV[:, -1] > 0)
        rows = np.arange(len(weight_RN))
        made: dict[str, Any] = {
            "auc": (np.diff(far_RV) * (tar_RV[:, 1:] + tar_RV[:, :-1])).sum(axis=1) / 2,
            "eer": self._eer(far_RV, tar_RV, rows),
        }
        for target in far_targets:
            # The last vertex whose FAR is within the target; vertex 0 accepts nothing.
            made[target] = tar_RV[rows, (far_RV <= float(target)).sum(axis=1) - 1]
        return {name: np.where(defined_R, value_R, np.nan) for name, value_R in made.items()}

    def _running(self, weight_RN: Ints) -> Ints:
        """Weight accepted at each vertex, from none to all; (R, V)."""
        running = np.cumsum(weight_RN, axis=1, dtype=np.int64)[:, self.last_V]
        return np.concatenate([np.zeros((len(running), 1), np.int64), running], axis=1)

    @staticmethod
    def _eer(far_RV: Floats, tar_RV: Floats, rows: Ints) -> Floats:
        gap_RV = far_RV - (1 - tar_RV)
        after = np.argmax(gap_RV >= 0, axis=1)
        before = np.maximum(after - 1, 0)
        low, high = gap_RV[rows, before], gap_RV[rows, after]
        with np.errstate(invalid="ignore"):
            share = -low / (high - low)
        return far_RV[rows, before] + share * (far_RV[rows, after] - far_RV[rows, before])


def _mean_of_defined(value_RF: Floats, defined_RF: Bools) -> Floats:
    """Mean of each row's defined values; NaN where it has none."""
    with np.errstate(invalid="ignore"):
        return np.where(defined_RF, value_RF, 0).sum(axis=-1) / defined_RF.sum(axis=-1)
