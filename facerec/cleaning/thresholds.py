"""From which cosine an image is its identity's: out of the cosines of the set itself.

Shape suffixes: N judged images, P cosines with the centres of other identities, Q quantiles.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.errors import require

Floats = npt.NDArray[np.float32]

_QUANTILES: Final = np.linspace(0.1, 0.95, 18)
_STEPS: Final = 2000  # thresholds that are tried


class Limit(NamedTuple):
    """A threshold and what it is expected to do.

    Attributes:
        least: cosine that an image of the identity reaches.
        wrong: estimated part of wrong images among those judged; None: not estimated.
        false_drop: estimated part of the right images below it.
        found: estimated part of the wrong images below it.
        said: how it was chosen.
        widest: what images must be below to be a further person's, if several of them agree.
    """

    least: float
    wrong: float | None
    false_drop: float | None
    found: float | None
    said: str
    widest: float = -1.0

    @property
    def estimate(self) -> str:
        """A sentence about what is expected of it; empty where nothing was estimated."""
        if self.wrong is None or self.false_drop is None:
            return ""
        of_those = "" if self.found is None else f", {100 * self.found:.0f} % of them below the threshold"
        return (
            f"estimated: {100 * self.wrong:.1f} % of the judged images have a wrong label{of_those}, with "
            f"{100 * self.false_drop:.1f} % of the right ones"
        )


def outlier_limit(
    own_N: Floats, impostor_P: Floats, false_drop: float = 0.01, least: float | None = None
) -> Limit:
    """The cosine below which the most wrong images lie less the right ones, of whom only few may.

    Images with a wrong label are strangers to their identity's centre, so their cosines are distributed as
    those of images with the centres of other identities, I; those of all images are F = (1 − w)·G + w·I. The
    part w is at most F(t) / I(t) at any t; the least of these at 18 quantiles of I is taken for it (as Storey
    2002 bounds the part of true null hypotheses), F two standard deviations up, as images may be few. So
    G = (F − w·I) / (1 − w) is the part of right images below a threshold. The one that maximises
    w·I − (1 − w)·G, where G is at most `false_drop`, is taken; `widest` is the last where G is.

    Args:
        own_N: cosine of each image with the centre of its identity without it.
        impostor_P: cosines of images with centres of other identities.
        false_drop: the most of G, in [0, 1).
        least: take this threshold; the parts are estimated for it.
    """
    require(0 <= false_drop < 1, "--false-drop", false_drop, "must be 0 or more, and below 1")
    own_N, impostor_P = np.sort(own_N), np.sort(impostor_P)
    below_Q = np.searchsorted(own_N, np.quantile(impostor_P, _QUANTILES))
    deviation_Q = np.sqrt(below_Q + below_Q**2 * (1 / _QUANTILES - 1) / len(impostor_P))
    most_Q = (below_Q + 1 + 2 * deviation_Q) / len(own_N)
    wrong = float(np.clip((most_Q / _QUANTILES).min(), 0, 1 - 1e-9))
    if least is None:
        some_Q = own_N[np.linspace(0, len(own_N) - 1, min(_STEPS, len(own_N))).astype(int)]
        step_Q = np.r_[some_Q[0] - 1e-6, (some_Q[1:] + some_Q[:-1]) / 2]
    else:
        step_Q = np.array([least])
    all_Q, wrong_Q = _below(own_N, step_Q), wrong * _below(impostor_P, step_Q)
    right_Q = np.maximum(all_Q - wrong_Q, 0) / (1 - wrong)
    at, said = 0, "as given"
    if least is None:
        at = int(np.where(right_Q <= false_drop, 2 * wrong_Q - all_Q, -np.inf).argmax())
        said = f"below which most wrong images lie, and at most {100 * false_drop:g} % of the right ones"
    found = float(wrong_Q[at] / wrong) if wrong else None
    widest = float(step_Q[right_Q <= false_drop].max()) if least is None else least
    return Limit(float(step_Q[at]), wrong, float(right_Q[at]), found, said, widest)


def _below(sorted_N: Floats, value_Q: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The part of the sample below each value."""
    return np.searchsorted(sorted_N, value_Q) / len(sorted_N)
