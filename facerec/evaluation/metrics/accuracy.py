"""Accuracy: the mean over folds of the pairs judged right by the threshold chosen on the other folds."""

from __future__ import annotations

from facerec.evaluation.metrics.base import METRICS, JudgedPairs, Metric
from facerec.evaluation.statistics.bootstrap import Resamples
from facerec.evaluation.statistics.separation import Floats


@METRICS.register("accuracy")
class Accuracy(Metric):
    """See `facerec.evaluation.statistics.folds`; None where the protocol has no folds."""

    label = "Accuracy"

    def value(self, pairs: JudgedPairs) -> float | None:
        return None if pairs.folds is None else pairs.folds.accuracy

    def deviation(self, pairs: JudgedPairs) -> float | None:
        return None if pairs.folds is None else pairs.folds.accuracy_std

    def resampled(self, drawn: Resamples) -> Floats:
        return drawn.accuracy_R
