"""What report.html draws: curves and histograms as plain numbers, for its script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from facerec.evaluation.protocols.identification import IdentificationResult, MegafaceResult
from facerec.evaluation.protocols.settings import Result
from facerec.evaluation.protocols.templates import TemplateResult
from facerec.evaluation.protocols.verification import VerificationResult
from facerec.evaluation.statistics.metrics import Curve, Histogram, Separation
from facerec.reporting.evaluated import Evaluated
from facerec.reporting.tables import rows_of

Chart = dict[str, Any]


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
        for kind, series in _series(result):
            made[kind].append(where | series)
    return made


def _series(result: Result) -> list[tuple[str, Chart]]:
    if isinstance(result, VerificationResult):
        separation = Separation.of(result.distance_N, result.issame_N)
        histogram = _histogram(separation.histogram(), "distance") | {"threshold": result.best_threshold}
        curve = separation.curve() if separation.both_kinds else None
        counts = len(separation.genuine_G), len(separation.impostor_I)
        return [*_roc(curve, "distance", counts, result.eer), ("histograms", histogram)]
    if isinstance(result, TemplateResult):
        counts = result.genuine_pairs, result.pairs - result.genuine_pairs
        series = _roc(result.curve, "cosine", counts, result.eer)
        if result.histogram is not None:
            series.append(("histograms", _histogram(result.histogram, "cosine")))
        return series
    if isinstance(result, IdentificationResult):
        series = [("cmc", {"x": list(range(1, len(result.cmc) + 1)), "y": _short(result.cmc)})]
        if result.curve is not None:
            counts = result.mated_probes, result.probes - result.mated_probes
            series += [("tpir", one) for _, one in _roc(result.curve, "cosine", counts, None)]
        return series
    assert isinstance(result, MegafaceResult)
    reached = [(int(cut), value) for cut, value in result.rank1.items() if value is not None]
    return [("distractors", {"x": [cut for cut, _ in reached], "y": [value for _, value in reached]})]


def _roc(
    curve: Curve | None, scale: str, counts: tuple[int, int], eer: float | None
) -> list[tuple[str, Chart]]:
    """A curve with its thresholds; `counts` of genuine and impostor trials say how far down it reaches."""
    if curve is None:
        return []
    kept = np.isfinite(curve.distance_V)  # beyond are probes whose mate was not first: never found
    threshold = curve.distance_V if scale == "distance" else -curve.distance_V
    series = {
        "far": _short(curve.far_V[kept]),
        "tar": _short(curve.tar_V[kept]),
        "threshold": _short(threshold[kept]),
        "scale": scale,
        "genuine": counts[0],
        "impostor": counts[1],
        "eer": eer,
    }
    return [("roc", series)]


def _histogram(histogram: Histogram, scale: str) -> Chart:
    """Shares of each kind's pairs; cosines ascend from left to right, as distances do."""
    edges, genuine, impostor = histogram
    if scale == "cosine":
        edges, genuine, impostor = -edges[::-1], genuine[::-1], impostor[::-1]
    return {
        "scale": scale,
        "edges": _short(edges),
        "genuine": genuine.tolist(),
        "impostor": impostor.tolist(),
        "threshold": None,
    }


def _short(values: npt.ArrayLike) -> list[float]:
    """Six significant digits: a line is drawn the same."""
    return [float(f"{value:.6g}") for value in np.asarray(values, np.float64).tolist()]
