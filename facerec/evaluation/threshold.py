"""Choose the threshold of a model at a FAR on a verification set, and calibrate its cosines.

Shape suffix: N pairs.
"""

from __future__ import annotations

from facerec.errors import require
from facerec.evaluation.statistics.calibration import logistic
from facerec.evaluation.statistics.separation import Separation
from facerec.evaluation.verify import VerificationResult
from facerec.models.threshold import Threshold


def choose_threshold(name: str, result: VerificationResult, far: float | None = None) -> Threshold:
    """The lowest threshold at which no more than `far` of the impostor pairs of a set are called same.

    The probability is a logistic function of the cosine, fitted to all pairs as Platt proposed (Probabilistic
    outputs for support vector machines, 1999), so that it stays finite where the kinds do not overlap;
    genuine and impostor pairs weigh the same in sum.

    Args:
        name: of the set.
        result: of the model on it.
        far: above 0 and below 1; None: 1e-3, or the next power of ten that the set's impostor pairs support.

    Raises:
        ConfigError: the set has one kind of pairs only, or too few impostor pairs for `far`.
    """
    genuine, impostor = result.genuine_pairs, result.pairs - result.genuine_pairs
    require(min(genuine, impostor) > 0, "eval.targets", name, "holds one kind of pairs: no threshold")
    if far is None:
        far = next((one for one in (1e-3, 1e-2, 1e-1) if one * impostor >= 1), 0.5)
    require(0 < far < 1, "far", far, "must be above 0 and below 1")
    hint = f"the {impostor:,} impostor pairs of {name} support {1 / impostor:.2g} and more"
    require(far * impostor >= 1 - 1e-9, "far", far, hint)
    separation = Separation.of(result.distance_N, result.issame_N)
    distance = min(separation.threshold_at_far(far), 4.0)
    same_N = result.issame_N.astype(bool)
    slope, intercept = logistic(1 - result.distance_N / 2, same_N)
    return Threshold(
        cosine=float(1 - distance / 2),
        far=float(far),
        tar=float((separation.genuine_G < distance).mean()),
        set=name,
        genuine=genuine,
        impostor=impostor,
        slope=slope,
        intercept=intercept,
        flip=result.flip,
    )
