"""Bootstrap intervals of verification numbers: identities resampled where they are known, else pairs.

A resample is a weight for each pair, so that nothing is copied. Over pairs, the weight is how often the pair
was drawn, within its fold. Over identities, these are drawn with replacement: a genuine pair weighs as often
as its one identity was drawn, an impostor pair the product of its two identities' numbers, since each copy of
the one meets each copy of the other (A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1,
2007; R. M. Bolle, N. K. Ratha, S. Pankanti, "Error analysis of pattern recognition systems: the subsets
bootstrap", CVIU 93, 2004, for why pairs of the same identities must not count as independent).

Shape suffixes: N pairs, G groups of pairs, I identities, R resamples (of a block), F folds, J cells, V
vertices of a ROC curve (in counts: its segments); "2" is impostor, genuine, or the two images of a pair.
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
_LARGE = 20  # pairs that take longer to draw than one binomial number

Draw = Callable[[int], Ints]
"""Weights of all pairs in so many resamples, (R, N), or the sums by groups of pairs, (R, G)."""

Interval = tuple[float, float] | None
"""Both ends of a 95 % interval, or that there is none."""


def pair_draw(fold_G: Ints, size_G: Ints, rng: np.random.Generator) -> Draw:
    """Pairs drawn with replacement within their folds, which keep their sizes, counted by groups of pairs.

    Large groups are drawn at once, by the multinomial distribution of their counts, the others pair by pair.

    Args:
        fold_G: fold of each group, ascending.
        size_G: pairs of each group.
        rng: generator.
    """
    parts = []
    for fold in np.unique(fold_G):
        first, stop = np.searchsorted(fold_G, [fold, fold + 1])
        large = np.flatnonzero(size_G[first:stop] > _LARGE)
        small = np.flatnonzero(size_G[first:stop] <= _LARGE)
        single_P = np.repeat(small, size_G[first:stop][small])  # the group of each pair
        sizes = [*size_G[first:stop][large], *([len(single_P)] if len(single_P) else [])]
        parts.append((slice(first, stop), large, single_P, np.array(sizes)))

    def draw(resamples: int) -> Ints:
        count_RG = np.zeros((resamples, len(size_G)), np.int32)
        for groups, large, single_P, sizes in parts:
            total = sizes.sum()
            drawn_RL = rng.multinomial(total, sizes / total, size=resamples)
            part_RG = count_RG[:, groups]
            part_RG[:, large] = drawn_RL[:, : len(large)]
            for count_G, times in zip(part_RG, drawn_RL[:, -1] if len(single_P) else (), strict=False):
                drawn = rng.integers(len(single_P), size=times, dtype=np.uint32)
                count_G += np.bincount(single_P[drawn], minlength=len(count_G))
        return count_RG

    return draw


def identity_draw(identity_N2: Ints, rng: np.random.Generator) -> Draw:
    """Identities, numbered from 0, drawn with replacement from all of the set."""
    identities = int(identity_N2.max()) + 1
    first_N, second_N = identity_N2.T
    second_N = np.where(first_N == second_N, identities, second_N)  # a genuine pair's second factor is 1

    def draw(resamples: int) -> Ints:
        times_RI = np.pad(_times_drawn(identities, resamples, rng), ((0, 0), (0, 1)), constant_values=1)
        times_RI = times_RI.astype(np.int32)
        return np.take(times_RI, first_N, axis=1) * np.take(times_RI, second_N, axis=1)

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
    """A block of R resamples of pairs; what metrics are made from.

    Between two neighbouring vertices of the ROC lie pairs of one kind, or of one distance: all resamples have
    their vertices among these.

    Attributes:
        count_R2V: impostor and genuine pairs between each vertex and the one before.
        impostors: number of impostor pairs of the set.
        accuracy_R: mean over folds, the thresholds chosen anew in each resample; a fold without pairs, or
            without pairs in the others to choose its threshold by, does not count.
    """

    count_R2V: Floats
    impostors: int
    accuracy_R: Floats

    @functools.cached_property
    def roc(self) -> tuple[Floats, Floats]:
        """FAR and TAR at each vertex of the ROC, from none accepted to all, (R, V) each.

        NaN in resamples without genuine or without impostor pairs.
        """
        accepted_R2V = np.pad(np.cumsum(self.count_R2V, axis=-1), ((0, 0), (0, 0), (1, 0)))
        total_R2 = accepted_R2V[..., -1]
        undefined_R1 = (total_R2 == 0).any(axis=1, keepdims=True)
        rate_R2V = accepted_R2V / np.where(undefined_R1, np.nan, total_R2)[..., None]
        return rate_R2V[:, 0], rate_R2V[:, 1]


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
    order = np.lexsort((distance_N, issame_N, fold_N))
    distance_N, issame_N, fold_N = distance_N[order], issame_N[order], fold_N[order]
    search = threshold_search(distance_N, thresholds)
    cell_N = (fold_N * 2 + issame_N) * search.cells + search.cell(distance_N)
    cells = count * 2 * search.cells
    segment_N, segments = _roc_segments(distance_N, issame_N)
    # Pairs of one fold, kind, cell and segment are counted together.
    last_G = np.flatnonzero(np.append((np.diff(cell_N) != 0) | (np.diff(segment_N) != 0), True))
    cell_G, kind_segment_G = cell_N[last_G], issame_N[last_G] * segments + segment_N[last_G]
    last_C = np.flatnonzero(np.append(np.diff(cell_G) != 0, True))
    rng = np.random.default_rng(seed)
    if identity_N2 is None:
        draw = pair_draw(fold_N[last_G], np.diff(last_G, prepend=-1), rng)
    else:
        draw = identity_draw(identity_N2[order], rng)
    blocks: dict[str, list[Any]] = {name: [] for name in metrics}
    step = max(1, _CELLS // max(cells, len(distance_N)))
    for start in range(0, resamples, step):
        count_RG = draw(min(step, resamples - start))
        if identity_N2 is not None:
            running_RN = np.cumsum(count_RG, axis=1, dtype=np.int32)
            count_RG = _between(running_RN, last_G)
        rows = len(count_RG)
        running_RG = np.cumsum(count_RG, axis=1, dtype=np.int32)
        count_RF2J = np.zeros((rows, cells), np.int32)
        count_RF2J[:, cell_G[last_C]] = _between(running_RG, last_C)
        with np.errstate(invalid="ignore"):  # 0 / 0 in a fold that has no pairs
            accuracy_RF, _ = search.choose(count_RF2J.reshape(rows, count, 2, search.cells))
        size_RF = count_RF2J.reshape(rows, count, -1).sum(axis=-1)
        judged_RF = (size_RF > 0) & (size_RF < size_RF.sum(axis=-1, keepdims=True))
        accuracy_R = _mean_of_defined(accuracy_RF, judged_RF)
        count_R2V = [np.bincount(kind_segment_G, count_G, 2 * segments) for count_G in count_RG]
        drawn = Resamples(np.reshape(count_R2V, (rows, 2, segments)), int((~issame_N).sum()), accuracy_R)
        for name, metric in metrics.items():
            blocks[name].append(metric.resampled(drawn))
    return {name: _joined(parts) for name, parts in blocks.items() if parts and parts[0] is not None}


def _between(running_RN: Ints, last_X: Ints) -> Ints:
    """What is added between each two of these places, by running sums; (R, X)."""
    upto_RX = np.take(running_RN, last_X, axis=1)
    return np.concatenate([upto_RX[:, :1], upto_RX[:, 1:] - upto_RX[:, :-1]], axis=1)


def _roc_segments(distance_N: Floats, issame_N: Bools) -> tuple[Ints, int]:
    """The straight segment of the ROC that each pair is part of, in their order, and how many there are.

    Neighbouring distances of one kind of pairs alone are one segment, parallel to an axis: whatever its pairs
    weigh, the curve has no corner within it.
    """
    value_N = np.unique(distance_N, return_inverse=True)[1]
    genuine_V = np.bincount(value_N, issame_N) > 0
    impostor_V = np.bincount(value_N, ~issame_N) > 0
    begins_V = (genuine_V & impostor_V) | np.append(False, genuine_V[1:] != genuine_V[:-1])
    begins_V |= np.append(False, impostor_V[1:] != impostor_V[:-1])
    begins_V[0] = False
    segment_V = np.cumsum(begins_V)
    return segment_V[value_N], int(segment_V[-1]) + 1


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
