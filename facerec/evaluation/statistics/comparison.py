"""Comparison of models on a test: McNemar's exact test on their paired decisions, Holm-corrected; a paired
bootstrap of AUC and EER where decisions mean little.

Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12, 1947; S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
Journal of Statistics 6, 1979.

Shape suffixes: X decisions (pairs or probes), N pairs, R resamples, V distinct distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from facerec.errors import UserError, counted
from facerec.evaluation.results import PairResult, Result
from facerec.evaluation.statistics.bootstrap import Interval, Resamples, blocks, identity_draw
from facerec.evaluation.statistics.bootstrap import interval as percentiles
from facerec.evaluation.statistics.separation import Ints


@dataclass(frozen=True)
class Comparison:
    """Two models on one target, by the decisions that only the one got right, or by AUC or EER.

    `difference` is the number of the first less that of the second, its 95 % interval from a paired
    bootstrap, thresholds held fixed. Of decisions, the number is the fraction of right ones, and `p` is
    McNemar's, two-sided and exact (binomial), taking decisions as independent. Of AUC and EER (`number`),
    there are no decisions, and `p` is of the bootstrap; None without it. `p_holm` is corrected for all pairs
    of models.
    """

    first: str
    second: str
    decided: str
    decisions: int
    first_only: int | None
    second_only: int | None
    difference: float
    difference_interval: Interval
    p: float | None
    p_holm: float | None
    number: str = ""
    lower_is_better: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json."""
        return asdict(self)


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test: how likely so uneven a split of the discordant decisions is where
    each is equally likely to go either way. 1 where there are none.
    """
    from scipy.stats import binomtest  # slow to load

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values, in their order: never below the plain ones, at most 1."""
    corrected = [0.0] * len(p)
    highest = 0.0
    for step, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        highest = max(highest, min(1.0, (len(p) - step) * p[at]))
        corrected[at] = highest
    return corrected


def compare(results: Mapping[str, Result], *, bootstrap: int = 0, seed: int = 0) -> list[Comparison]:
    """Each two of the models on one target.

    Args:
        results: by model.
        bootstrap: resamples for the interval of the difference, of identities where they are known, else of
            decisions.
        seed: of the bootstrap.

    Raises:
        UserError: the models were not judged on the same decisions.
    """
    compared = []
    for (first, one), (second, other) in combinations(results.items(), 2):
        if isinstance(one, PairResult) and isinstance(other, PairResult) and one.score_key == "auc":
            compared += _by_rates(first, one, second, other, bootstrap, seed)
            continue
        if one.right_X is None or other.right_X is None or one.decided != other.decided:
            continue  # too few impostor pairs for any FAR, of both or of one
        _require_as_many(first, len(one.right_X), second, len(other.right_X))
        difference_X = one.right_X.astype(np.int8) - other.right_X.astype(np.int8)
        alone = int((difference_X > 0).sum()), int((difference_X < 0).sum())
        difference = float(difference_X.mean())
        interval = _interval(one, difference_X, bootstrap, seed)
        decided = one.decided, len(difference_X)
        plain = mcnemar(*alone)
        number = one.headline.label if one.headline else ""
        compared.append(
            Comparison(first, second, *decided, *alone, difference, interval, plain, plain, number)
        )
    for number in {one.number for one in compared}:
        of_number = [at for at, one in enumerate(compared) if one.number == number and one.p is not None]
        for at, p in zip(of_number, holm([compared[at].p or 0.0 for at in of_number]), strict=True):
            compared[at] = replace(compared[at], p_holm=p)
    return compared


def _require_as_many(first: str, one: int, second: str, other: int) -> None:
    if one != other:
        raise UserError(
            f"{first} was judged on {counted(one, 'decision')}, {second} on {other:,}: "
            "they cannot be compared one by one"
        )


def _by_rates(
    first: str, one: PairResult, second: str, other: PairResult, resamples: int, seed: int
) -> list[Comparison]:
    """Differences of AUC and EER, both models on the same resamples of pairs or identities."""
    _require_as_many(first, one.pairs, second, other.pairs)
    weights = list(_weights(one, resamples, seed))
    drawn = [[_resampled(weight_RN, result) for weight_RN in weights] for result in (one, other)]
    unit = "pairs" if one.identity_N2 is None else "identities"
    compared = []
    for key in ("auc", "eer"):
        metric = one.metrics[key]
        values = (
            np.concatenate([np.empty(0), *(metric.resampled(block) for block in of_model)])
            for of_model in drawn
        )
        gain_R = np.subtract(*values)
        gain_R = gain_R[np.isfinite(gain_R)]
        p = None
        if len(gain_R):  # as often on the other side of 0, this and the resamples counted
            side = min((gain_R <= 0).sum(), (gain_R >= 0).sum())
            p = min(1.0, 2 * float(side + 1) / (len(gain_R) + 1))
        decided = f"{metric.label} in the same resamples of the {unit}"
        difference = one.values[key] - other.values[key]
        found = Comparison(
            first, second, decided, one.pairs, None, None, difference, percentiles(gain_R), p, p
        )
        compared.append(replace(found, number=metric.label, lower_is_better=metric.lower_is_better))
    return compared


def _weights(result: PairResult, resamples: int, seed: int) -> Iterator[Ints]:
    """How often each pair counts, (R, N) in blocks: identities drawn again, or pairs of each kind."""
    rng = np.random.default_rng(seed)
    if result.identity_N2 is not None:
        yield from map(identity_draw(result.identity_N2, rng), blocks(resamples, result.pairs))
        return
    same_N = result.issame_N
    for rows in blocks(resamples, len(same_N)):
        weight_RN = np.zeros((rows, len(same_N)), np.int32)
        for kind in (same_N, ~same_N):
            count = int(kind.sum())
            weight_RN[:, kind] = rng.multinomial(count, np.full(count, 1 / count), size=rows)
        yield weight_RN


def _resampled(weight_RN: Ints, result: PairResult) -> Resamples:
    """The weighted pairs accepted at each distinct distance."""
    order = np.argsort(result.distance_N, kind="stable")
    sorted_N = result.distance_N[order]
    last_V = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))
    accepted = [
        np.cumsum(weight_RN[:, order] * kind_N[order], axis=1, dtype=np.int64)[:, last_V]
        for kind_N in (~result.issame_N, result.issame_N)
    ]
    nowhere_R = np.full(len(weight_RN), np.nan)
    return Resamples(np.stack(accepted, axis=1), result.pairs - result.genuine_pairs, nowhere_R)


def _interval(result: Result, difference_X: Ints, resamples: int, seed: int) -> Interval:
    """95 % interval of the mean difference, both models on the same resamples."""
    if not resamples:
        return None
    rng = np.random.default_rng(seed)
    if result.identity_N2 is None:
        size_3 = np.array([(difference_X == sign).sum() for sign in (-1, 1, 0)])
        drawn_R3 = rng.multinomial(len(difference_X), size_3 / len(difference_X), size=resamples)
        return percentiles((drawn_R3[:, 1] - drawn_R3[:, 0]) / len(difference_X))
    draw = identity_draw(result.identity_N2, rng)
    differing = np.flatnonzero(difference_X)
    with np.errstate(invalid="ignore"):
        means = [
            weight_RX[:, differing] @ difference_X[differing] / weight_RX.sum(axis=1)
            for weight_RX in map(draw, blocks(resamples, len(difference_X)))
        ]
    return percentiles(np.concatenate(means))
