"""Distances of pairs of embeddings, and genuine and impostor ones over all thresholds: ROC, FAR, histograms.

A distance is any number that is smaller for more alike pairs (negate a similarity). A pair is called "same"
at threshold t where d < t.

Shape suffixes: N pairs (rows 2i and 2i + 1 being pair i), G genuine and I impostor pairs, V vertices of a ROC
curve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.errors import NonFiniteError, UserError
from facerec.vectors import row_norms, unit_rows

if TYPE_CHECKING:
    import torch

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

    @property
    def alike(self) -> bool:
        """True if genuine and impostor pairs all have one distance."""
        kinds = (self.genuine_G, self.impostor_I) if self.both_kinds else ()
        return len({distance for kind in kinds for distance in kind[[0, -1]].tolist()}) == 1

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


# Distances of embeddings ----------------------------------------------------------------------------------

_ROWS = 256  # rows worked on at once: their intermediate results stay in the cache


def as_numpy(array: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    """A NumPy view of a NumPy array, list or torch tensor (bfloat16 widened: NumPy does not have it)."""
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(array)


def as_floats(array: npt.ArrayLike | torch.Tensor) -> Floats:
    """float32 or float64, rows contiguous.

    Raises:
        UserError: these are no real numbers.
    """
    given = as_numpy(array)
    if given.dtype.kind not in "fiub":
        raise UserError(f"embeddings are of type {given.dtype}; they must be real numbers")
    wide = given if given.dtype in (np.float32, np.float64) else given.astype(np.float32)
    return np.ascontiguousarray(wide)


def answers(issame_N: npt.ArrayLike | torch.Tensor) -> Bools:
    """True for genuine pairs, (N,), from booleans or the numbers 1 and 0, (N,) or (N, 1).

    Raises:
        UserError: another value, which could mean either: −1, 2, NaN, the text "0"; it names the first.
    """
    given = np.asarray(as_numpy(issame_N)).reshape(-1)
    number = [isinstance(one, bool | np.bool_ | int | float | np.number) for one in given.tolist()]
    known_N = np.array(number, bool) & ((given == 0) | (given == 1))
    if not known_N.all():
        pair = int(np.argmin(known_N))
        raise UserError(
            f"the answer (issame) of pair {pair} is {given[pair]!s:.20} ({type(given[pair]).__name__}); "
            "give true or 1 for a pair of one identity, false or 0 for one of two"
        )
    return given.astype(bool)


def check_shapes(plain: Floats, mirrored: Floats | None, same: Bools) -> None:
    """Raise UserError where the arrays do not fit together."""
    if plain.ndim != 2 or len(plain) != 2 * len(same) or not plain.shape[1]:
        raise UserError(
            f"embeddings of shape {plain.shape} do not fit {len(same)} pairs: rows 2i and 2i+1 must be "
            f"pair i, so ({2 * len(same)}, D) is expected"
        )
    if mirrored is not None and mirrored.shape != plain.shape:
        raise UserError(f"mirrored embeddings have shape {mirrored.shape}, the plain ones {plain.shape}")


def _check_finite(norm_2N: Floats, first_row: int, what: str) -> None:
    broken = np.flatnonzero(~np.isfinite(norm_2N))
    if len(broken):
        row = first_row + int(broken[0])
        which = "first" if row % 2 == 0 else "second"
        raise NonFiniteError(
            f"{what} in row {row} (pair {row // 2}, {which} image) is not finite; "
            "check the model's weights and precision"
        )


def _squared_distances(unit: Floats) -> Floats:
    """‖f1 − f2‖² of rows 2i and 2i + 1."""
    difference = unit[0::2] - unit[1::2]
    return np.sum(np.square(difference, out=difference), 1)


def pair_distances(plain: Floats, mirrored: Floats | None) -> tuple[Floats, Floats, Floats, int]:
    """Distances in the embeddings' own precision, to the bit as the published scripts have them.

    They are made in one pass over the rows in blocks that stay in the cache; a row sees only its pair.

    Returns:
        Distances of the pairs, and without mirrors; norms of all rows given; how many rows are zero.
    """
    distance = np.empty(len(plain) // 2, dtype=plain.dtype)
    plain_distance = distance if mirrored is None else np.empty_like(distance)
    norm = np.empty((1 if mirrored is None else 2, len(plain)), dtype=plain.dtype)
    zero = 0
    for start in range(0, len(plain), _ROWS):
        at, pair = slice(start, start + _ROWS), slice(start // 2, (start + _ROWS) // 2)
        rows = plain[at]
        norm[0, at] = row_norms(rows)
        _check_finite(norm[0, at], start, "embedding")
        plain_distance[pair] = _squared_distances(unit_rows(rows, norm_N=norm[0, at]))
        used = norm[0, at]
        if mirrored is not None:
            norm[1, at] = row_norms(mirrored[at])
            _check_finite(norm[1, at], start, "embedding of the mirrored image")
            with np.errstate(over="ignore"):
                rows = rows + mirrored[at]
            used = row_norms(rows)
            _check_finite(used, start, "sum of the embeddings of both views")
            distance[pair] = _squared_distances(unit_rows(rows, norm_N=used))
        zero += int((used == 0).sum())
    return distance, plain_distance, norm.reshape(-1), zero
