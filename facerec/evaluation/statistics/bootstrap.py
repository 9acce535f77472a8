"""Bootstrap intervals of verification numbers: identities resampled where they are known, else pairs.

A resample is a weight for each pair, so that nothing is copied. Over pairs, the weight is how often the pair
was drawn, within its fold. Over identities, these are drawn with replacement: a genuine pair weighs as often
as its one identity was drawn, an impostor pair the product of its two identities' numbers, since each copy of
the one meets each copy of the other (A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1,
2007; R. M. Bolle, N. K. Ratha, S. Pankanti, "Error analysis of pattern recognition systems: the subsets
bootstrap", CVIU 93, 2004, for why pairs of the same identities must not count as independent).

Shape suffixes: N pairs, I identities, R resamples (of a block), F folds, J cells, V vertices of a ROC curve;
"2" is impostor, genuine, or the two images of a pair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from facerec.errors import UserError
from facerec.evaluation.statistics.folds import Thresholds, fold_numbers, threshold_search
from facerec.evaluation.statistics.separation import Bools, Floats, Ints

_CELLS = 1_000_000  # of a block's largest array: 4 to 8 MB

Draw = Callable[[int], Ints]
"""Weights of all pairs in so many resamples, (R, N)."""

Interval = tuple[float, float] | None
"""Both ends of a 95 % interval, or that there is none."""


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
    """Identities, numbered from 0, drawn with replacement from all of the set."""
    identities = int(identity_N2.max()) + 1
    first_N, second_N = identity_N2[:, 0], identity_N2[:, 1]
    genuine_N = first_N == second_N

    def draw(resamples: int) -> Ints:
        times_RI = _times_drawn(identities, resamples, rng).astype(np.int32)
        times_RN = times_RI[:, first_N]
        return times_RN * np.where(genuine_N, np.int32(1), times_RI[:, second_N])

    return draw


def _times_drawn(identities: int, resamples: int, rng: np.random.Generator) -> Ints:
    return rng.multinomial(identities, np.full(identities, 1 / identities), size=resamples)


def numbered_identities(identity_2N: npt.ArrayLike, issame_N: Bools) -> Ints:
    """Names or numbers of identities as numbers from 0, int64 (N, 2).

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
        said = "one identity" if issame_N[pair] else "two identities"
        one, other = given[2 * pair : 2 * pair + 2]
        raise UserError(f"pair {pair} is of {said} by its answer, but its identities are {one} and {other}")
    return identity_N2


@dataclass
class Resamples:
    """A block of R resamples of pairs, which stand by ascending distance here; what metrics are made from.

    Attributes:
        weight_RN: how often each pair counts.
        distance_N, issame_N: the pairs.
        last_V: the last pair of each distinct distance.
        accuracy_R: mean over folds, the thresholds chosen anew in each resample; a fold without pairs, or
            without pairs in the others to choose its threshold by, does not count.
    """

    weight_RN: Ints
    distance_N: Floats
    issame_N: Bools
    last_V: Ints
    accuracy_R: Floats

    @functools.cached_property
    def roc(self) -> tuple[Floats, Floats]:
        """FAR and TAR at each vertex of the ROC, from none accepted to all, (R, V) each.

        NaN in resamples without genuine or without impostor pairs.
        """
        genuine_RV, impostor_RV = self._accepted(self.issame_N), self._accepted(~self.issame_N)
        undefined_R1 = (genuine_RV[:, -1:] == 0) | (impostor_RV[:, -1:] == 0)
        impostors_R1 = np.where(undefined_R1, np.nan, impostor_RV[:, -1:])
        genuines_R1 = np.where(undefined_R1, np.nan, genuine_RV[:, -1:])
        return impostor_RV / impostors_R1, genuine_RV / genuines_R1

    def _accepted(self, kind_N: Bools) -> Ints:
        """Weight of a kind of pairs that is accepted at each vertex."""
        running = np.cumsum(self.weight_RN * kind_N, axis=1, dtype=np.int64)[:, self.last_V]
        return np.pad(running, ((0, 0), (1, 0)))


class Resampled(Protocol):
    """A metric of resamples, see `facerec.evaluation.metrics.Metric`."""

    def resampled(self, drawn: Resamples) -> Floats | dict[str, Floats] | None: ...


def bootstrap(
    distance_N: Floats,
    issame_N: Bools,
    folds: int | Ints = 10,
    thresholds: Thresholds = "grid",
    *,
    metrics: Mapping[str, Resampled],
    resamples: int,
    seed: int,
    identity_N2: Ints | None = None,
) -> dict[str, Floats | dict[str, Floats]]:
    """The metrics of `resamples` resamples, (resamples,) each, NaN where a resample does not define one.

    Args:
        distance_N, issame_N, folds, thresholds: as `statistics.folds.cross_validate` takes them.
        metrics: by name; those that give none stay out of the result.
        identity_N2: identities of each pair's images, from `numbered_identities`; None: pairs are resampled.
    """
    fold_N, count = fold_numbers(len(distance_N), folds)
    rng = np.random.default_rng(seed)
    draw = pair_draw(fold_N, rng) if identity_N2 is None else identity_draw(identity_N2, rng)
    search = threshold_search(distance_N, thresholds)
    cell_N = (fold_N * 2 + issame_N) * search.cells + search.cell(distance_N)
    cells = count * 2 * search.cells
    order = np.argsort(distance_N, kind="stable")
    sorted_N, same_N = distance_N[order], issame_N[order]
    last_V = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))
    blocks: dict[str, list[Any]] = {name: [] for name in metrics}
    step = max(1, _CELLS // max(cells, len(distance_N)))
    for start in range(0, resamples, step):
        weight_RN = draw(min(step, resamples - start))
        rows = len(weight_RN)
        flat = (np.arange(rows)[:, None] * cells + cell_N).reshape(-1)
        count_RF2J = np.bincount(flat, weight_RN.reshape(-1), minlength=rows * cells).astype(np.int32)
        with np.errstate(invalid="ignore"):  # 0 / 0 in a fold that has no pairs
            accuracy_RF, _ = search.choose(count_RF2J.reshape(rows, count, 2, search.cells))
        size_RF = count_RF2J.reshape(rows, count, -1).sum(axis=-1)
        judged_RF = (size_RF > 0) & (size_RF < size_RF.sum(axis=-1, keepdims=True))
        accuracy_R = _mean_of_defined(accuracy_RF, judged_RF)
        drawn = Resamples(weight_RN[:, order], sorted_N, same_N, last_V, accuracy_R)
        for name, metric in metrics.items():
            blocks[name].append(metric.resampled(drawn))
    return {name: _joined(parts) for name, parts in blocks.items() if parts and parts[0] is not None}


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def interval(value_R: Floats, coverage: float = 0.95) -> Interval:
    """The central percentile interval of bootstrap values; None where no resample defined one."""
    defined = value_R[np.isfinite(value_R)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def rate_intervals(hit_XN: Bools, cluster_N: npt.ArrayLike, *, resamples: int, seed: int) -> list[Interval]:
    """95 % intervals of the fraction of hits among N trials, resampling the identities of the trials.

    Thresholds and galleries are held fixed: the variation is that of the probes alone.

    Args:
        hit_XN: X rates, a row of hits each.
        cluster_N: identity of each trial, numbers or names.
        resamples: 0 gives None for each.
    """
    if not resamples or hit_XN.shape[1] == 0:
        return [None] * len(hit_XN)
    number_N = np.unique(np.asarray(cluster_N), return_inverse=True)[1]
    size_I = np.bincount(number_N)
    hits_XI = np.stack([np.bincount(number_N, hit_N, minlength=len(size_I)) for hit_N in hit_XN])
    rng = np.random.default_rng(seed)
    rate_XR = np.empty((len(hit_XN), resamples))
    step = max(1, _CELLS // len(size_I))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        times_RI = _times_drawn(len(size_I), stop - start, rng)
        rate_XR[:, start:stop] = (hits_XI @ times_RI.T) / (times_RI @ size_I)
    return [interval(rate_R) for rate_R in rate_XR]


def _mean_of_defined(value_RF: Floats, defined_RF: Bools) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.where(defined_RF, value_RF, 0).sum(axis=-1) / defined_RF.sum(axis=-1)
