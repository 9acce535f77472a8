"""Genuine and impostor distances over all thresholds: the ROC, thresholds at a FAR, histograms.

A distance is any number that is smaller for more alike pairs (negate a similarity). A pair is called "same"
at threshold t where d < t.

Shape suffixes: N pairs, G genuine and I impostor pairs, V vertices of a ROC curve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.evaluation.notes import warn

_ALIKE = (
    "all pairs are equally far apart: the embeddings tell nobody from anybody, and no number means anything"
)

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]


class Curve(NamedTuple):
    """Some vertices of a ROC, ascending: false and true accept rates, and the distance accepted."""

    far_V: Floats
    tar_V: Floats
    distance_V: Floats


class Histogram(NamedTuple):
    """Counts of genuine and impostor distances between `edges`, one more than counts."""

    edges: Floats
    genuine: Ints
    impostor: Ints


def accepted_at(far: float, impostors: int) -> int:
    """The largest number n of impostor pairs with n / `impostors` ≤ `far`, compared as floats."""
    accepted = int(far * impostors)
    # The product may round across an integer; the definition compares a quotient.
    while accepted < impostors and (accepted + 1) / impostors <= far:
        accepted += 1
    while accepted > 0 and accepted / impostors > far:
        accepted -= 1
    return accepted


class Separation:
    """Genuine and impostor distances, sorted once; either kind may be empty."""

    def __init__(self, genuine_G: Floats, impostor_I: Floats) -> None:
        self.genuine_G = np.sort(genuine_G)
        self.impostor_I = np.sort(impostor_I)

    @classmethod
    def of(cls, distance_N: Floats, issame_N: Bools) -> Separation:
        """From one array of distances and the labels."""
        return cls(distance_N[issame_N], distance_N[~issame_N])

    @property
    def both_kinds(self) -> bool:
        """True if there are genuine and impostor pairs, without which rates are not defined."""
        return len(self.genuine_G) > 0 and len(self.impostor_I) > 0

    def alike(self) -> list[str]:
        """A warning where genuine and impostor pairs all have one distance."""
        kinds = (self.genuine_G, self.impostor_I) if self.both_kinds else ()
        ends = {distance for kind in kinds for distance in kind[[0, -1]].tolist()}
        return warn(_ALIKE) if len(ends) == 1 else []

    def threshold_at_far(self, far: float) -> float:
        """The largest threshold t with #(impostor d < t) / I ≤ `far`; infinity where all may be accepted."""
        count = len(self.impostor_I)
        allowed = accepted_at(far, count)
        return float(self.impostor_I[allowed]) if allowed < count else float("inf")

    def rates(self, value_V: Floats) -> tuple[Floats, Floats]:
        """FAR and TAR where distances up to each value are accepted."""
        far = np.searchsorted(self.impostor_I, value_V, side="right") / max(1, len(self.impostor_I))
        tar = np.searchsorted(self.genuine_G, value_V, side="right") / max(1, len(self.genuine_G))
        return far, tar

    def before(self, value_V: Floats) -> Floats:
        """The highest distance of either kind below each value, −infinity where there is none."""
        below = []
        for kind in (self.genuine_G, self.impostor_I):
            at = np.searchsorted(kind, value_V, side="left")
            below.append(np.where(at > 0, kind[np.maximum(at - 1, 0)], -np.inf))
        return np.maximum(*below)

    def roc(self) -> tuple[Floats, Floats]:
        """FAR and TAR at each distinct distance, ascending, from (0, 0) to (1, 1)."""
        far, tar = self.rates(np.unique(np.concatenate([self.genuine_G, self.impostor_I])))
        return np.concatenate([[0.0], far]), np.concatenate([[0.0], tar])

    def curve(self, points: int = 200) -> Curve | None:
        """The ROC for drawing, at up to about twice `points` of its vertices; None without both kinds.

        They are evenly spaced in the logarithms of FAR and of 1 − TAR, down to one pair, so that a staircase
        through them is the ROC to a hair on either logarithmic axis; memory does not grow with the pairs.
        """
        if not self.both_kinds:
            return None
        genuine, impostor = len(self.genuine_G), len(self.impostor_I)
        accepted = np.unique(np.geomspace(1, impostor, points).round().astype(np.int64))
        missed = np.unique(np.geomspace(1, genuine, points).round().astype(np.int64))
        # Nearest distances not to be accepted any more; the vertex is the last distance before each.
        beyond = self.impostor_I[np.concatenate([[0], accepted[accepted < impostor]])]
        enough = self.genuine_G[np.concatenate([[genuine - 1], genuine - 1 - missed[missed < genuine]])]
        highest = max(self.genuine_G[-1], self.impostor_I[-1])
        value = np.unique(np.concatenate([self.before(beyond), enough, [highest]]))
        value = value[value > -np.inf]
        return Curve(*self.rates(value), value)

    def histogram(self, bins: int = 60) -> Histogram:
        """Counts in `bins` cells of equal width over all finite distances."""
        finite = [kind[np.isfinite(kind)] for kind in (self.genuine_G, self.impostor_I)]
        ends = np.concatenate([kind[[0, -1]] for kind in finite if len(kind)])
        low, high = float(ends.min()), float(ends.max())
        edges = np.linspace(low, high if high > low else low + 0.01, bins + 1)
        genuine, impostor = (np.histogram(kind, edges)[0] for kind in finite)
        return Histogram(edges, genuine, impostor)
