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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facerec.errors import UserError
from facerec.evaluation.statistics.folds import Thresholds, fold_numbers, threshold_search
from facerec.evaluation.statistics.separation import Bools, Floats, Ints
from facerec.threads import ordered_map

if TYPE_CHECKING:
    from facerec.evaluation.metrics.base import Metric

_CELLS = 1_000_000  # of a block's largest array: 4 to 8 MB
_LARGE = 20  # pairs that take longer to draw than one binomial number
_BYTE = 256

Draw = Callable[[int], Ints]
"""Weights of all pairs in so many resamples, (R, N), or the sums by groups of pairs, (R, G)."""

Interval = tuple[float, float] | None
"""Both ends of a 95 % interval, or that there is none."""


def pair_draw(fold_G: Ints, size_G: Ints, rng: np.random.Generator) -> Draw:
    """Pairs drawn with replacement within their folds, which keep their sizes, counted by groups of pairs.

    First how often each large group is drawn, each batch of 256 other pairs, and each pair that is left over:
    a multinomial distribution. Then one random byte for each time that a batch is drawn says the pair.

    Args:
        fold_G: fold of each group, ascending.
        size_G: pairs of each group.
        rng: generator.
    """
    large_L = np.flatnonzero(size_G > _LARGE)
    # The group of each other pair.
    single_P = np.repeat(np.arange(len(size_G)), np.where(size_G > _LARGE, 0, size_G))
    fold_P = fold_G[single_P]
    begins_F, pairs_F = np.unique(fold_P, return_index=True, return_counts=True)[1:]
    ends_F = begins_F + pairs_F // _BYTE * _BYTE
    batch_B = _ranges(begins_F, ends_F, _BYTE)
    left_K = _ranges(ends_F, begins_F + pairs_F, 1)
    fold_X = np.concatenate([fold_G[large_L], fold_P[batch_B], fold_P[left_K]])
    size_X = np.concatenate([size_G[large_L], np.full(len(batch_B), _BYTE), np.ones(len(left_K), int)])
    start_X = np.concatenate([batch_B, left_K])
    folds = [np.flatnonzero(fold_X == fold) for fold in np.unique(fold_G)]

    def draw(resamples: int) -> Ints:
        drawn_RX = np.empty((resamples, len(size_X)), np.int64)
        for part_X in folds:
            total = size_X[part_X].sum()
            drawn_RX[:, part_X] = rng.multinomial(total, size_X[part_X] / total, size=resamples)
        large_RL, small_RX = np.split(drawn_RX, [len(large_L)], axis=1)
        count_RG = np.zeros((resamples, len(size_G)), np.int64)
        for count_G, times_X in zip(count_RG, small_RX if len(start_X) else (), strict=False):
            drawn_P = np.repeat(start_X, times_X)
            within = int(times_X[: len(batch_B)].sum())
            drawn_P[:within] += np.frombuffer(rng.bytes(within), np.uint8)
            count_G[:] = np.bincount(single_P.take(drawn_P), minlength=len(count_G))
        count_RG[:, large_L] = large_RL
        return count_RG

    return draw


def _ranges(begin_F: Ints, end_F: Ints, step: int) -> Ints:
    """The numbers from each beginning to before its end, in steps."""
    ranges = [np.arange(begin, end, step) for begin, end in zip(begin_F, end_F, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *ranges])


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
        accepted_R2V: impostor and genuine pairs up to each vertex, but for the first, where none is accepted.
        impostors: number of impostor pairs of the set.
        accuracy_R: mean over folds, the thresholds chosen anew in each resample; a fold without pairs, or
            without pairs in the others to choose its threshold by, does not count.
    """

    accepted_R2V: Ints
    impostors: int
    accuracy_R: Floats

    @property
    def total_R2(self) -> Floats:
        """Impostor and genuine pairs, NaN in resamples without the one or the other kind."""
        total_R2 = self.accepted_R2V[..., -1]
        return np.where((total_R2 == 0).any(axis=1, keepdims=True), np.nan, total_R2)


def bootstrap(
    distance_N: Floats,
    issame_N: Bools,
    folds: int | Ints = 10,
    thresholds: Thresholds = "grid",
    *,
    metrics: Mapping[str, Metric],
    resamples: int,
    seed: int,
    identity_N2: Ints | None = None,
) -> dict[str, Floats | dict[str, Floats]]:
    """The metrics of `resamples` resamples, (resamples,) each, NaN where a resample does not define one.

    Args:
        distance_N, issame_N, folds, thresholds: as `statistics.folds.cross_validate` takes them.
        metrics: by name; those that give none stay out of the result.
        resamples: 0: the result is empty.
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
    by_segment_G = np.argsort(kind_segment_G, kind="stable")
    every_2V = np.arange(2 * segments).reshape(2, segments)
    # Groups up to each vertex.
    upto_2V = np.searchsorted(kind_segment_G, every_2V, side="right", sorter=by_segment_G)
    last_C = np.flatnonzero(np.append(np.diff(cell_G) != 0, True))
    rng = np.random.default_rng(seed)
    if identity_N2 is None:
        draw = pair_draw(fold_N[last_G], np.diff(last_G, prepend=-1), rng)
    else:
        draw = identity_draw(identity_N2[order], rng)

    def judged(count_RG: Ints) -> list[Any]:
        if identity_N2 is not None:
            count_RG = _between(np.cumsum(count_RG, axis=1, dtype=np.int32), last_G)
        rows = len(count_RG)
        count_RF2J = np.zeros((rows, cells), np.int32)
        count_RF2J[:, cell_G[last_C]] = _between(np.cumsum(count_RG, axis=1, dtype=np.int32), last_C)
        size_RF = count_RF2J.reshape(rows, count, -1).sum(axis=-1)
        judged_RF = (size_RF > 0) & (size_RF < size_RF.sum(axis=-1, keepdims=True))
        with np.errstate(invalid="ignore"):  # 0 / 0 in a fold that has no pairs, and where none is judged
            accuracy_RF, _ = search.choose(count_RF2J.reshape(rows, count, 2, search.cells))
            accuracy_R = np.where(judged_RF, accuracy_RF, 0).sum(axis=-1) / judged_RF.sum(axis=-1)
        running_RG = np.pad(np.cumsum(count_RG.take(by_segment_G, axis=1), axis=1), ((0, 0), (1, 0)))
        accepted_R2V = running_RG.take(upto_2V, axis=1)
        accepted_R2V[:, 1] -= accepted_R2V[:, 0, -1:]
        drawn = Resamples(accepted_R2V, int((~issame_N).sum()), accuracy_R)
        return [metric.resampled(drawn) for metric in metrics.values()]

    drawn = map(draw, blocks(resamples, max(cells, len(distance_N))))
    parts = zip(*ordered_map(judged, drawn, name="bootstrap"), strict=True)  # judged while the next are drawn
    return {name: _joined(one) for name, one in zip(metrics, parts, strict=False) if one[0] is not None}


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


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def blocks(resamples: int, size: int) -> Iterator[int]:
    """Numbers of resamples to work on at once, `size` numbers each."""
    step = max(1, _CELLS // size)
    return (min(step, resamples - start) for start in range(0, resamples, step))


def interval(value_R: Floats) -> Interval:
    """The central 95 % of bootstrap values; None where no resample defined one."""
    defined = value_R[np.isfinite(value_R)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


def rate_intervals(
    hit_N: Mapping[str, Bools], cluster_N: npt.ArrayLike, *, resamples: int, seed: int
) -> dict[str, Interval]:
    """95 % intervals of fractions of hits among N trials, resampling the identities of the trials.

    Thresholds and galleries are held fixed: the variation is that of the probes alone.

    Args:
        hit_N: the hits of each rate, by its name.
        cluster_N: identity of each trial, numbers or names.
        resamples: 0 gives None for each.
    """
    number_N = np.unique(np.asarray(cluster_N), return_inverse=True)[1]
    if not resamples or not hit_N or not len(number_N):
        return dict.fromkeys(hit_N)
    size_I = np.bincount(number_N)
    hits_XI = np.stack([np.bincount(number_N, one_N, minlength=len(size_I)) for one_N in hit_N.values()])
    rng = np.random.default_rng(seed)
    drawn = (_times_drawn(len(size_I), rows, rng) for rows in blocks(resamples, len(size_I)))
    rates = [(hits_XI @ times_RI.T) / (times_RI @ size_I) for times_RI in drawn]
    return dict(zip(hit_N, map(interval, np.concatenate(rates, axis=1)), strict=True))
