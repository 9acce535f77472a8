"""Numbers of verification pairs, a metric per module: `eval.metrics` chooses among those registered."""

from facerec.evaluation.metrics.base import METRICS, JudgedPairs, Metric, Value

__all__ = ["METRICS", "JudgedPairs", "Metric", "Value"]
