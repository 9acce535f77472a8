"""What report.html draws: curves and histograms as plain numbers, for its script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from facerec.reporting.evaluated import Evaluated
from facerec.reporting.tables import rows_of


def charts_of(evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Models, targets and series by chart: ``roc`` (the DET is drawn from it), ``cmc``, ``tpir``,
    ``distractors`` and ``histograms``.
    """
    models = [one.name for one in evaluated]
    targets = list(dict.fromkeys(target for _, target, _ in rows_of(evaluated)))
    made: dict[str, Any] = {"models": models, "targets": targets}
    for kind in ("roc", "cmc", "tpir", "distractors", "histograms"):
        made[kind] = []
    for one, target, result in rows_of(evaluated):
        where = {"model": models.index(one.name), "target": targets.index(target)}
        for chart, data in result.curves():
            made[chart].append(where | {key: _plain(value) for key, value in data.items()})
    return made


def _plain(value: Any) -> Any:
    """Six significant digits of fractions in arrays and lists: a line is drawn the same."""
    if not isinstance(value, np.ndarray | list):
        return value
    return [float(f"{one:.6g}") if isinstance(one, float) else one for one in np.asarray(value).tolist()]
