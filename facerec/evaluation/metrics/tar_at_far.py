"""TAR@FAR: the true accept rate at the largest threshold whose false accept rate is within a target."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from facerec.evaluation.metrics.base import METRICS, JudgedPairs, Metric
from facerec.evaluation.statistics.bootstrap import Resamples
from facerec.evaluation.statistics.separation import Floats, Separation, accepted_at

FAR_TARGETS = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")
"""The FAR targets reported, as they are written in results.json."""


def tar_at_far(separation: Separation, targets: Iterable[str] = FAR_TARGETS) -> dict[str, float | None]:
    """TAR per FAR target, keyed as written; None where there are fewer than 1 / FAR impostor pairs."""
    return {target: _tar(separation, float(target)) for target in targets}


def _supported(far: float, impostors: int) -> bool:
    return impostors > 0 and 1 / impostors <= far


def _tar(separation: Separation, far: float) -> float | None:
    if not separation.both_kinds or not _supported(far, len(separation.impostor_I)):
        return None
    accepted = np.searchsorted(separation.genuine_G, separation.threshold_at_far(far), side="left")
    return float(accepted / len(separation.genuine_G))


@METRICS.register("tar_at_far")
class TarAtFar(Metric):
    label = "TAR @ FAR"

    def value(self, pairs: JudgedPairs) -> dict[str, float | None]:
        return tar_at_far(pairs.separation)

    def resampled(self, drawn: Resamples) -> dict[str, Floats]:
        targets = [target for target in FAR_TARGETS if _supported(float(target), drawn.impostors)]
        found: dict[str, Floats] = {target: np.zeros(len(drawn.accepted_R2V)) for target in targets}
        for row, (accepted_2V, total_2) in enumerate(zip(drawn.accepted_R2V, drawn.total_R2, strict=True)):
            for target, tar_R in found.items():
                # The last vertex whose FAR is within the target; before the first, nothing is accepted.
                allowed = accepted_at(float(target), int(accepted_2V[0, -1]))
                end = np.searchsorted(accepted_2V[0], allowed, side="right")
                tar_R[row] = (accepted_2V[1, end - 1] if end else 0) / total_2[1]
        return found
