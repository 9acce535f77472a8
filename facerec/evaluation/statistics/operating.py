"""Operating points: thresholds at given false match rates, and the errors there, also of groups and after
images of low quality were rejected; and probabilities that pairs are genuine.

The rates are named as ISO/IEC 19795-1 names those of comparisons: false match rate (FMR, here also FAR) and
false non-match rate (FNMR, 1 − TAR). Failures to enrol or to acquire are not counted in them.

Genuine and impostor pairs weigh the same in sum in a probability, so that it is that of even odds before the
images were seen, whatever the proportion of the set.

Shape suffixes: N pairs, C points of a curve, B bins; "2" is the two images of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from facerec.evaluation.metrics.tar_at_far import tar_at_far
from facerec.evaluation.statistics.bootstrap import Interval
from facerec.evaluation.statistics.separation import Bools, Floats, Ints, Separation

_REJECTED = np.linspace(0, 0.95, 20)


class Point(NamedTuple):
    """A threshold and the rates there; a pair is called same where its distance is below it.

    `threshold_interval` holds 95 % of the order statistics that the FMR may fall on, impostor pairs taken as
    independent; where there are too few of them for its lower end, that is 0, the smallest distance.
    """

    threshold: float
    threshold_interval: Interval
    fmr: float
    fnmr: float
    fnmr_interval: Interval


def operating_points(separation: Separation, tar_intervals: Mapping[str, Interval]) -> dict[str, Point]:
    """The points at each FMR that the number of impostor pairs supports, by the FMR as it is written."""
    from scipy.stats import binom  # slow to load

    points = {}
    impostor_I, count = separation.impostor_I, len(separation.impostor_I)
    for target, tar in tar_at_far(separation).items():
        if tar is None:
            continue
        threshold = separation.threshold_at_far(float(target))
        low, high = binom.ppf([0.025, 0.975], count, float(target)).astype(int).tolist()
        ends = 0.0 if low == 0 else float(impostor_I[low - 1]), float(impostor_I[min(high, count - 1)])
        fmr = float(np.searchsorted(impostor_I, threshold, side="left") / count)
        interval = tar_intervals.get(target)
        fnmr_interval = None if interval is None else (1 - interval[1], 1 - interval[0])
        points[target] = Point(threshold, ends, fmr, 1 - tar, fnmr_interval)
    return points


class GroupRates(NamedTuple):
    """The pairs of a group, both of whose images are of it, and their error rates at the common threshold.

    The 95 % intervals are those of Clopper and Pearson (Biometrika 26, 1934): pairs taken as independent.
    """

    group: str
    genuine: int
    impostor: int
    fnmr: float | None
    fnmr_interval: Interval
    fmr: float | None
    fmr_interval: Interval


def group_rates(
    distance_N: Floats, same_N: Bools, group_N2: Sequence[Sequence[str]] | np.ndarray, threshold: float
) -> list[GroupRates]:
    """The rates of each group at one threshold, by name; an empty name is no group."""
    first_N, second_N = np.asarray(group_N2, str).T
    within_N = (first_N == second_N) & (first_N != "")
    accepted_N = distance_N < threshold
    rates = []
    for group in np.unique(first_N[within_N]).tolist():
        genuine_N = within_N & (first_N == group) & same_N
        impostor_N = within_N & (first_N == group) & ~same_N
        missed, taken = int((genuine_N & ~accepted_N).sum()), int((impostor_N & accepted_N).sum())
        genuine, impostor = int(genuine_N.sum()), int(impostor_N.sum())
        rates.append(GroupRates(group, genuine, impostor, *_rate(missed, genuine), *_rate(taken, impostor)))
    return rates


def _rate(errors: int, trials: int) -> tuple[float | None, Interval]:
    if not trials:
        return None, None
    from scipy.stats import binomtest  # slow to load

    low, high = binomtest(errors, trials).proportion_ci(method="exact")
    return errors / trials, (float(low), float(high))


def largest_gap(rates: Sequence[GroupRates], rate: str) -> tuple[str, str, float] | None:
    """The groups of the highest and of the lowest rate, and its difference; None of fewer than two."""
    known = [one for one in rates if getattr(one, rate) is not None]
    if len(known) < 2:
        return None
    worst, best = (choose(known, key=lambda one: getattr(one, rate)) for choose in (max, min))
    return worst.group, best.group, getattr(worst, rate) - getattr(best, rate)


class Rejection(NamedTuple):
    """Error-versus-reject curve: FNMR at a fixed threshold after the pairs of lowest quality were left out.

    P. Grother and E. Tabassi, "Performance of biometric quality measures", TPAMI 29, 2007. The quality of a
    pair is the lower one of its images. `auc` is the mean FNMR over the fractions rejected, 0 … 95 %: of a
    measure that knows nothing it is the FNMR itself, `fnmr_C[0]`, and `best` that of one that rejects all
    errors first.
    """

    rejected_C: Floats
    fnmr_C: Floats
    auc: float
    best: float


def error_versus_reject(
    distance_N: Floats, same_N: Bools, quality_N2: Floats, threshold: float
) -> Rejection | None:
    """The curve over the genuine pairs, those of equal quality taken as their mean; None without any."""
    missed_N = (distance_N >= threshold)[same_N].astype(float)
    if not len(missed_N):
        return None
    quality_N = np.asarray(quality_N2, np.float64).min(axis=1)[same_N]
    curves = [_remaining(missed_N, quality_N), _remaining(missed_N, -missed_N)]
    areas = [float((curve[1:] + curve[:-1]).mean() / 2) for curve in curves]  # trapezoids of equal widths
    return Rejection(_REJECTED, curves[0], *areas)


def _remaining(missed_N: Floats, quality_N: Floats) -> Floats:
    """Mean of `missed_N` over those that remain where fractions of the lowest quality are rejected."""
    _, level_N = np.unique(quality_N, return_inverse=True)
    mean_L = np.bincount(level_N, missed_N) / np.bincount(level_N)  # ties count by their mean
    running = np.concatenate([[0.0], np.cumsum(mean_L[level_N][np.argsort(quality_N, kind="stable")])])
    dropped_C = (_REJECTED * len(missed_N)).astype(int)
    remaining_C: Floats = (running[-1] - running[dropped_C]) / (len(missed_N) - dropped_C)
    return remaining_C


def interval_text(value: float | None, interval: Interval) -> str:
    """``0.02300 (0.01800 to 0.02900)``; a dash where there is no value."""
    if value is None:
        return "–"
    return f"{value:.5f}" + ("" if interval is None else f" ({interval[0]:.5f} to {interval[1]:.5f})")


# Probabilities --------------------------------------------------------------------------------------------


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


def fit_logistic(cosine_N: Floats, same_N: Bools) -> tuple[Callable[[Floats], Floats], dict[str, Any]]:
    """The probability as a function of the cosine, and its parameters: slope and intercept of the log-odds.

    Platt, Probabilistic outputs for support vector machines, 1999: each pair counts for both answers, its own
    (n + 1) times in n + 2.
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
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
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


def reliability(probability_N: Floats, same_N: Bools, bins: int = 10) -> Reliability:
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
