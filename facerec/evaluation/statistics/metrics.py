"""Verification metrics over all thresholds, from distances alone: ROC, AUC, EER and TAR@FAR.

A distance is any number that is smaller for more alike pairs (negate a similarity). A pair is called "same"
at threshold t where d < t.

Shape suffixes: N pairs, G genuine and I impostor pairs, V vertices of a ROC curve.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

logger = logging.getLogger("facerec.evaluation")

_ALIKE = (
    "all pairs are equally far apart: the embeddings tell nobody from anybody, and no number means anything"
)

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

FAR_TARGETS = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")
"""The FAR targets reported, as they are written in results.json."""


class Curve(NamedTuple):
    """Some vertices of a ROC, ascending: false and true accept rates, and the distance accepted."""

    far_V: Floats
    tar_V: Floats
    distance_V: Floats


class Histogram(NamedTuple):
    """Counts of genuine and impostor distances between `edges`, one more than counts."""

    edges: Floats
    genuine: npt.NDArray[np.integer]
    impostor: npt.NDArray[np.integer]


def accepted_at(far: float, impostors: int) -> int:
    """The largest number n of impostor pairs with n / `impostors` ≤ `far`, compared as floats."""
    accepted = int(far * impostors)
    # The product may round across a whole number; the definition compares a quotient.
    while accepted < impostors and (accepted + 1) / impostors <= far:
        accepted += 1
    while accepted > 0 and accepted / impostors > far:
        accepted -= 1
    return accepted


class Separation:
    """How well genuine and impostor distances separate, over all thresholds; both are sorted once.

    Args:
        genuine_G, impostor_I: finite distances (smaller: more alike) of the two kinds of pairs; either may
            be empty.
    """

    def __init__(self, genuine_G: Floats, impostor_I: Floats) -> None:
        self.genuine_G = np.sort(genuine_G)
        self.impostor_I = np.sort(impostor_I)

    @classmethod
    def of(cls, distance_N: Floats, issame_N: Bools) -> Separation:
        """From one array of distances and the labels."""
        return cls(distance_N[issame_N], distance_N[~issame_N])

    @property
    def both_kinds(self) -> bool:
        """Whether there are genuine and impostor pairs, without which nothing below is defined."""
        return len(self.genuine_G) > 0 and len(self.impostor_I) > 0

    def alike(self) -> list[str]:
        """A note, which is also logged, where genuine and impostor pairs all have one distance."""
        if (
            not self.both_kinds
            or len({*self.genuine_G[[0, -1]].tolist(), *self.impostor_I[[0, -1]].tolist()}) > 1
        ):
            return []
        logger.warning("%s", _ALIKE)
        return [_ALIKE]

    def supports(self, far: float) -> bool:
        """Whether there are enough impostor pairs to see this FAR at all: at least 1 / `far`."""
        return len(self.impostor_I) > 0 and 1 / len(self.impostor_I) <= far

    def tar_at_far(self, far: float) -> float | None:
        """TAR at the largest threshold whose FAR ≤ `far`; None where the impostor pairs do not support it."""
        if not self.both_kinds or not self.supports(far):
            return None
        return self._tar(self.threshold_at_far(far))

    def tars(self, targets: Iterable[str] = FAR_TARGETS) -> dict[str, float | None]:
        """`tar_at_far` for each target, keyed as written: ``{"1e-3": 0.97, …}``."""
        return {target: self.tar_at_far(float(target)) for target in targets}

    def threshold_at_far(self, far: float) -> float:
        """The largest threshold t with #(impostor d < t) / I ≤ `far`; infinity where all may be accepted."""
        count = len(self.impostor_I)
        allowed = accepted_at(far, count)
        return float(self.impostor_I[allowed]) if allowed < count else float("inf")

    def auc(self) -> float | None:
        """Area under the ROC: the probability that a genuine pair is nearer than an impostor pair, ties
        half."""
        if not self.both_kinds:
            return None
        below_G = np.searchsorted(self.impostor_I, self.genuine_G, side="left")
        upto_G = np.searchsorted(self.impostor_I, self.genuine_G, side="right")
        # Whole numbers up to the last division: exact, and independent of the order of pairs.
        twice_lost = int(below_G.sum(dtype=np.int64)) + int(upto_G.sum(dtype=np.int64))
        total = 2 * len(self.genuine_G) * len(self.impostor_I)
        return (total - twice_lost) / total

    def roc(self) -> tuple[Floats, Floats]:
        """False and true accept rates (far_V, tar_V), ascending, from (0, 0) to (1, 1), one vertex for each
        distinct distance."""
        far, tar = self._rates(np.unique(np.concatenate([self.genuine_G, self.impostor_I])))
        return np.concatenate([[0.0], far]), np.concatenate([[0.0], tar])

    def curve(self, points: int = 200) -> Curve:
        """The ROC for drawing, at up to about twice `points` of its vertices.

        They are evenly spaced in the logarithms of FAR and of 1 − TAR, down to one pair, so that a staircase
        through them is the ROC to a hair on either logarithmic axis. Needs both kinds of pairs; uses no
        memory to speak of, however many there are.
        """
        genuine, impostor = len(self.genuine_G), len(self.impostor_I)
        accepted = np.unique(np.geomspace(1, impostor, points).round().astype(np.int64))
        missed = np.unique(np.geomspace(1, genuine, points).round().astype(np.int64))
        # Nearest distances not to be accepted any more; the vertex is the last distance before each.
        beyond = self.impostor_I[np.concatenate([[0], accepted[accepted < impostor]])]
        enough = self.genuine_G[np.concatenate([[genuine - 1], genuine - 1 - missed[missed < genuine]])]
        highest = max(self.genuine_G[-1], self.impostor_I[-1])
        value = np.unique(np.concatenate([self._before(beyond), enough, [highest]]))
        value = value[value > -np.inf]
        return Curve(*self._rates(value), value)

    def histogram(self, bins: int = 60) -> Histogram:
        """Counts in `bins` cells of equal width over all finite distances."""
        finite = [kind[np.isfinite(kind)] for kind in (self.genuine_G, self.impostor_I)]
        ends = np.concatenate([kind[[0, -1]] for kind in finite if len(kind)])
        low, high = float(ends.min()), float(ends.max())
        edges = np.linspace(low, high if high > low else low + 0.01, bins + 1)
        genuine, impostor = (np.histogram(kind, edges)[0] for kind in finite)
        return Histogram(edges, genuine, impostor)

    def eer(self) -> float | None:
        """Equal error rate: where FAR = 1 − TAR on the ROC polyline (straight lines between its vertices)."""
        if not self.both_kinds:
            return None
        # FAR − (1 − TAR) does not decrease from −1 to 1: bisection finds the first vertex where it is ≥ 0.
        after = min(self._first_even(kind) for kind in (self.genuine_G, self.impostor_I))
        before = self._before(np.array([after]))
        (far_before, far), (tar_before, tar) = self._rates(np.array([before[0], after]))
        low, high = far_before - (1 - tar_before), far - (1 - tar)
        return float(far_before + -low / (high - low) * (far - far_before))

    def _rates(self, value_V: Floats) -> tuple[Floats, Floats]:
        """FAR and TAR where distances up to each value are accepted."""
        far = np.searchsorted(self.impostor_I, value_V, side="right") / max(1, len(self.impostor_I))
        tar = np.searchsorted(self.genuine_G, value_V, side="right") / max(1, len(self.genuine_G))
        return far, tar

    def _before(self, value_V: Floats) -> Floats:
        """The highest distance of either kind below each value, −infinity where there is none."""
        below = []
        for kind in (self.genuine_G, self.impostor_I):
            at = np.searchsorted(kind, value_V, side="left")
            below.append(np.where(at > 0, kind[np.maximum(at - 1, 0)], -np.inf))
        return np.maximum(*below)

    def _first_even(self, sorted_X: Floats) -> float:
        """The first of the distances at which FAR ≥ 1 − TAR; infinity where there is none."""
        low, high = 0, len(sorted_X)
        while low < high:
            middle = (low + high) // 2
            far, tar = self._rates(sorted_X[middle : middle + 1])
            if far[0] - (1 - tar[0]) >= 0:
                high = middle
            else:
                low = middle + 1
        return float(sorted_X[low]) if low < len(sorted_X) else float("inf")

    def _tar(self, threshold: float) -> float:
        return float(np.searchsorted(self.genuine_G, threshold, side="left") / len(self.genuine_G))
