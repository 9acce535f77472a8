"""Distances of pairs of embeddings, in their own precision and to the bit as the published scripts have them.

Shape suffixes: N pairs, rows 2i and 2i + 1 being pair i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.errors import NonFiniteError, UserError
from facerec.evaluation.statistics.separation import Bools, Floats
from facerec.vectors import row_norms, unit_rows

if TYPE_CHECKING:
    import torch

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


class PairDistances(NamedTuple):
    """Distances of the pairs, and without mirrors; norms of all rows given; how many rows are zero."""

    distance_N: Floats
    plain_distance_N: Floats
    norm: Floats
    zero: int


def pair_distances(plain: Floats, mirrored: Floats | None) -> PairDistances:
    """One pass over the rows in blocks that stay in the cache; a row sees only its pair."""
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
    return PairDistances(distance, plain_distance, norm.reshape(-1), zero)
