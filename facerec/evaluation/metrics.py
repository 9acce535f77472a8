"""Verification metrics over all thresholds, from distances alone: ROC, AUC, EER and TAR@FAR.

A distance is any number that is smaller for more alike pairs (negate a similarity). A pair is called "same"
at threshold t where d < t.

Shape suffixes: N pairs, G genuine and I impostor pairs, V vertices of a ROC curve.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

FAR_TARGETS = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")
"""The FAR targets reported, as they are written in results.json."""


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
        value = np.unique(np.concatenate([self.genuine_G, self.impostor_I]))
        far = np.searchsorted(self.impostor_I, value, side="right") / max(1, len(self.impostor_I))
        tar = np.searchsorted(self.genuine_G, value, side="right") / max(1, len(self.genuine_G))
        return np.concatenate([[0.0], far]), np.concatenate([[0.0], tar])

    def eer(self) -> float | None:
        """Equal error rate: where FAR = 1 − TAR on the ROC polyline (straight lines between its vertices)."""
        if not self.both_kinds:
            return None
        far_V, tar_V = self.roc()
        gap_V = far_V - (1 - tar_V)  # from -1 to 1, not decreasing
        after = int(np.argmax(gap_V >= 0))
        before = after - 1
        share = -gap_V[before] / (gap_V[after] - gap_V[before])
        return float(far_V[before] + share * (far_V[after] - far_V[before]))

    def _tar(self, threshold: float) -> float:
        return float(np.searchsorted(self.genuine_G, threshold, side="left") / len(self.genuine_G))
