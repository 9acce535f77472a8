"""TAR@FAR: the true accept rate at the largest threshold whose false accept rate is within a target."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from facerec.evaluation.metrics.base import METRICS, JudgedPairs, Metric
from facerec.evaluation.statistics.bootstrap import Resamples
from facerec.evaluation.statistics.separation import Floats, Separation

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
        allowed_T = np.array([float(target) for target in targets])
        # The last vertex whose FAR is within the target; vertex 0 accepts nothing.
        tar_RT = [
            tar_V[np.searchsorted(far_V, allowed_T, side="right") - 1]
            for far_V, tar_V in zip(*drawn.roc, strict=True)
        ]
        return dict(zip(targets, np.transpose(tar_RT), strict=True))
