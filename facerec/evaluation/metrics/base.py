"""Protocol of a metric, and the registry of metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from facerec.evaluation.statistics.bootstrap import Resamples, interval
from facerec.evaluation.statistics.folds import Folds
from facerec.evaluation.statistics.separation import Bools, Floats, Separation
from facerec.registry import Registry

METRICS: Final = Registry("eval.metrics", "facerec.evaluation.metrics")

Value = float | None | dict[str, float | None]
"""A number, None where the pairs do not support it, or one per operating point: ``{"1e-3": 0.97, …}``."""


@dataclass(frozen=True)
class JudgedPairs:
    """Input of a metric: N pairs with their distances and answers.

    Attributes:
        distance_N: smaller for more alike pairs; squared Euclidean (verification) or the negative cosine.
        issame_N: True for genuine pairs.
        folds: the accuracy and threshold per fold, where the protocol has folds.
    """

    distance_N: Floats
    issame_N: Bools
    folds: Folds | None = None
    separation: Separation = field(init=False)
    """Genuine and impostor distances, sorted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "separation", Separation.of(self.distance_N, self.issame_N))


class Metric(ABC):
    """One metric; register the class under the name that `eval.metrics` and results.json know it by.

    Attributes:
        label: of its numbers in tables; the operating point is added.
        lower_is_better: of two models the one with the lower value is better.
    """

    label: str
    lower_is_better: bool = False

    @abstractmethod
    def value(self, pairs: JudgedPairs) -> Value:
        """The number, or one per operating point."""

    def deviation(self, pairs: JudgedPairs) -> float | None:
        """Population deviation over the folds, where there are folds."""
        return None

    def resampled(self, drawn: Resamples) -> Floats | dict[str, Floats] | None:
        """The same of R resamples, (R,) or (R,) per operating point, NaN where a resample defines none.

        None: there is no interval.
        """
        return None


def create_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Metrics by name.

    Raises:
        ConfigError: one is not registered.
    """
    return {name: METRICS.create(name) for name in names}


def measure(metrics: Mapping[str, Metric], pairs: JudgedPairs) -> dict[str, Any]:
    """The values by name, as results.json has them, and the deviations over folds (``accuracy_std``)."""
    values: dict[str, Any] = {}
    for name, metric in metrics.items():
        values[name], deviation = _finite(metric.value(pairs)), metric.deviation(pairs)
        if deviation is not None:
            values[f"{name}_std"] = deviation
    return values


def measured_intervals(
    values: Mapping[str, Any], metrics: Iterable[str], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """The 95 % intervals as results.json has them (``accuracy_interval``), None where there is none.

    Args:
        values: from `measure`.
        metrics: names of the metrics.
        drawn: their values in resamples, from `bootstrap`.
    """

    def of(value: Value, drawn_R: Any) -> Any:
        if isinstance(value, dict):
            return {point: of(one, (drawn_R or {}).get(point)) for point, one in value.items()}
        return None if drawn_R is None else interval(drawn_R)

    return {f"{name}_interval": of(values[name], drawn.get(name)) for name in metrics}


def _finite(value: Value) -> Any:
    """The value as JSON takes it."""
    if isinstance(value, dict):
        return {point: _finite(one) for point, one in value.items()}
    return None if value is None or not math.isfinite(value) else float(value)
