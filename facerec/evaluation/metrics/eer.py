"""EER: the equal error rate, where FAR = 1 − TAR on the ROC polyline."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np

from facerec.evaluation.metrics.base import METRICS, JudgedPairs, Metric
from facerec.evaluation.statistics.bootstrap import Resamples
from facerec.evaluation.statistics.separation import Floats, Ints, Separation


def eer(separation: Separation) -> float | None:
    """Equal error rate; None unless there are both kinds of pairs."""
    if not separation.both_kinds:
        return None

    def gap(distance: float) -> Any:
        far, tar = separation.rates(np.array([distance]))
        return far[0] - (1 - tar[0])

    # FAR − (1 − TAR) does not decrease from −1 to 1: bisection finds the first vertex where it is ≥ 0.
    after = np.inf
    for sorted_X in (separation.genuine_G, separation.impostor_I):
        at = bisect_left(sorted_X, 0.0, key=gap)
        after = min(after, sorted_X[at] if at < len(sorted_X) else np.inf)
    before = separation.before(np.array([after]))
    (far_before, far), (tar_before, tar) = separation.rates(np.array([before[0], after]))
    low, high = far_before - (1 - tar_before), far - (1 - tar)
    return float(far_before + -low / (high - low) * (far - far_before))


@METRICS.register("eer")
class Eer(Metric):
    label = "EER"
    lower_is_better = True

    def value(self, pairs: JudgedPairs) -> float | None:
        return eer(pairs.separation)

    def resampled(self, drawn: Resamples) -> Floats:
        return np.array([_equal_rate(*one) for one in zip(drawn.accepted_R2V, drawn.total_R2, strict=True)])


def _equal_rate(accepted_2V: Ints, total_2: Floats) -> float:
    """The equal error rate of the pairs accepted at each vertex but the first, where none is."""
    if np.isnan(total_2).any():
        return np.nan

    def rates(vertex: int) -> Floats:
        return accepted_2V[:, vertex] / total_2 if vertex >= 0 else np.zeros(2)

    def gap(vertex: int) -> Any:
        far, tar = rates(vertex)
        return far - (1 - tar)

    after = bisect_left(range(accepted_2V.shape[1]), 0.0, key=gap)
    low, high, before, far = gap(after - 1), gap(after), rates(after - 1)[0], rates(after)[0]
    return float(before + -low / (high - low) * (far - before))
