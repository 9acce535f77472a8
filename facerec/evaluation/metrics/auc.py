"""AUC: the area under the ROC, the probability that a genuine pair is nearer than an impostor pair."""

from __future__ import annotations

import numpy as np

from facerec.evaluation.metrics.base import METRICS, JudgedPairs, Metric
from facerec.evaluation.statistics.bootstrap import Resamples
from facerec.evaluation.statistics.separation import Floats, Separation


def auc(separation: Separation) -> float | None:
    """Area under the ROC, ties half; None unless there are both kinds of pairs."""
    if not separation.both_kinds:
        return None
    below_G = np.searchsorted(separation.impostor_I, separation.genuine_G, side="left")
    upto_G = np.searchsorted(separation.impostor_I, separation.genuine_G, side="right")
    # Whole numbers up to the last division: exact, and independent of the order of pairs.
    twice_lost = int(below_G.sum(dtype=np.int64)) + int(upto_G.sum(dtype=np.int64))
    total = 2 * len(separation.genuine_G) * len(separation.impostor_I)
    return (total - twice_lost) / total


@METRICS.register("auc")
class Auc(Metric):
    label = "AUC"

    def value(self, pairs: JudgedPairs) -> float | None:
        return auc(pairs.separation)

    def resampled(self, drawn: Resamples) -> Floats:
        impostor_RV, genuine_RV = drawn.accepted_R2V[:, 0], drawn.accepted_R2V[:, 1]
        twice_R = impostor_RV[:, 0] * genuine_RV[:, 0]
        twice_R += np.einsum("rv,rv->r", np.diff(impostor_RV), genuine_RV[:, 1:] + genuine_RV[:, :-1])
        area_R: Floats = twice_R / 2 / drawn.total_R2.prod(axis=1)
        return area_R
