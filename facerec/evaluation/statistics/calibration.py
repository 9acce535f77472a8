"""Calibrate cosines to probabilities that a pair is genuine, and measure how far these are right.

Genuine and impostor pairs weigh the same in sum, so that a probability is that of even odds before the images
were seen, whatever the proportion of the set.

Shape suffixes: N pairs, B bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from facerec.evaluation.statistics.separation import Bools, Floats, Ints

_BINS = 10


class Reliability(NamedTuple):
    """How far predicted probabilities are those observed, each pair judged by a fit to the other folds.

    Attributes:
        predicted_B, observed_B: mean probability and fraction of genuine pairs in bins of equal weight.
        ece: expected calibration error, the mean distance of both (Naeini et al., AAAI 2015).
        brier: mean squared error of the probabilities (Brier 1950); 0.25 for one half always.
        log_loss: mean −log₂ of the probability of the right answer, in bits; 1 for one half always.
    """

    predicted_B: Floats
    observed_B: Floats
    ece: float
    brier: float
    log_loss: float


def logistic(cosine_N: Floats, same_N: Bools) -> tuple[float, float]:
    """Slope and intercept of the log-odds over the cosine (Platt, Probabilistic outputs for support vector
    machines, 1999); each pair counts for both answers, its own (n + 1) times in n + 2.
    """
    kinds = np.bincount(same_N)
    count_N = kinds[same_N.astype(int)]
    own_N = (count_N + 1) / (count_N + 2)
    from sklearn.linear_model import LogisticRegression  # slow to load

    model = LogisticRegression(C=np.inf, max_iter=1000, tol=1e-8)
    model.fit(
        np.concatenate([cosine_N, cosine_N])[:, None].astype(np.float64),
        np.concatenate([same_N, ~same_N]),
        sample_weight=np.concatenate([own_N / count_N, (1 - own_N) / count_N]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def fit_logistic(cosine_N: Floats, same_N: Bools) -> tuple[Callable[[Floats], Floats], dict[str, Any]]:
    """The probability as a function of the cosine, and its parameters."""
    slope, intercept = logistic(cosine_N, same_N)
    return lambda x: 1 / (1 + np.exp(-(slope * x + intercept))), {"slope": slope, "intercept": intercept}


def fit_isotonic(cosine_N: Floats, same_N: Bools) -> tuple[Callable[[Floats], Floats], dict[str, Any]]:
    """The same, a step-wise linear function that only rises (Zadrozny and Elkan, KDD 2002)."""
    from sklearn.isotonic import IsotonicRegression  # slow to load

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(cosine_N.astype(np.float64), same_N.astype(np.float64), sample_weight=even_weights(same_N))
    knots = {"cosine": model.X_thresholds_.tolist(), "probability": model.y_thresholds_.tolist()}
    return model.predict, knots


FITS = {"logistic": fit_logistic, "isotonic": fit_isotonic}


def even_weights(same_N: Bools) -> Floats:
    """A weight for each pair, 1 in all, as much for genuine as for impostor ones."""
    return np.where(same_N, 0.5 / max(1, same_N.sum()), 0.5 / max(1, (~same_N).sum()))


def cross_fitted(cosine_N: Floats, same_N: Bools, fold_N: Ints, method: str) -> Floats | None:
    """The probability of each pair by a fit to the other folds; None where those hold one kind alone."""
    probability_N = np.empty(len(same_N))
    for fold in np.unique(fold_N):
        rest = fold_N != fold
        if same_N[rest].all() or not same_N[rest].any():
            return None
        probability_N[~rest] = FITS[method](cosine_N[rest], same_N[rest])[0](cosine_N[~rest])
    return probability_N


def reliability(probability_N: Floats, same_N: Bools, bins: int = _BINS) -> Reliability:
    """Bins of equal weight of the pairs, ordered by probability, and the errors over all pairs."""
    weight_N = even_weights(same_N)
    order = np.argsort(probability_N, kind="stable")
    bin_N = np.empty(len(order), np.int64)
    bin_N[order] = np.minimum((np.cumsum(weight_N[order]) - weight_N[order] / 2) * bins, bins - 1).astype(int)
    weight_B = np.bincount(bin_N, weight_N, bins)
    used = weight_B > 0
    predicted_B, observed_B = (
        np.bincount(bin_N, weight_N * value_N, bins)[used] / weight_B[used]
        for value_N in (probability_N, same_N)
    )
    right_N = np.where(same_N, probability_N, 1 - probability_N)
    return Reliability(
        predicted_B,
        observed_B,
        ece=float((weight_B[used] * np.abs(predicted_B - observed_B)).sum()),
        brier=float((weight_N * (1 - right_N) ** 2).sum()),
        log_loss=float(-(weight_N * np.log2(np.maximum(right_N, 1e-9))).sum()),
    )
