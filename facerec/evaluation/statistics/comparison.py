"""Comparison of models on a test: McNemar's exact test on their paired decisions, Holm-corrected.

Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12, 1947; S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
Journal of Statistics 6, 1979.

Shape suffixes: X decisions (pairs or probes), R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import binomtest

from facerec.errors import UserError
from facerec.evaluation.results import Result
from facerec.evaluation.statistics.bootstrap import Interval, identity_draw
from facerec.evaluation.statistics.bootstrap import interval as percentiles
from facerec.evaluation.statistics.separation import Ints

_BLOCK = 1_000_000  # weights drawn at once


@dataclass(frozen=True)
class Comparison:
    """Two models on one target, by the decisions that only the one got right.

    `difference` is the fraction of right decisions of the first less that of the second, its 95 % interval
    from a paired bootstrap, thresholds held fixed. `p` is McNemar's, two-sided and exact (binomial), taking
    decisions as independent; `p_holm` is corrected for all pairs of models on this target.
    """

    first: str
    second: str
    decided: str
    decisions: int
    first_only: int
    second_only: int
    difference: float
    difference_interval: Interval
    p: float
    p_holm: float

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json."""
        entry = asdict(self)
        if self.difference_interval is not None:
            entry["difference_interval"] = list(self.difference_interval)
        return entry


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test: how likely so uneven a split of the discordant decisions is where
    each is equally likely to go either way. 1 where there are none.
    """
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
        if one.right_X is None or other.right_X is None or one.decided != other.decided:
            continue  # too few impostor pairs for any FAR, of both or of one
        if len(one.right_X) != len(other.right_X):
            raise UserError(
                f"{first} was judged on {len(one.right_X):,} decisions, {second} on {len(other.right_X):,}: "
                "they cannot be compared one by one"
            )
        difference_X = one.right_X.astype(np.int8) - other.right_X.astype(np.int8)
        alone = int((difference_X > 0).sum()), int((difference_X < 0).sum())
        difference = float(difference_X.mean())
        interval = _interval(one, difference_X, bootstrap, seed)
        decided = one.decided, len(difference_X)
        plain = mcnemar(*alone)
        compared.append(Comparison(first, second, *decided, *alone, difference, interval, plain, plain))
    corrected = holm([one.p for one in compared])
    return [replace(one, p_holm=p) for one, p in zip(compared, corrected, strict=True)]


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
    mean_R = np.empty(resamples)
    step = max(1, _BLOCK // len(difference_X))
    for start in range(0, resamples, step):
        weight_RX = draw(min(step, resamples - start))
        with np.errstate(invalid="ignore"):
            mean_R[start : start + step] = (
                weight_RX[:, differing] @ difference_X[differing] / weight_RX.sum(axis=1)
            )
    return percentiles(mean_R)
