"""Norms and unit vectors, NumPy or torch: the one place where embeddings are divided by their length.

A head's loss divides its own way (`facerec.heads.base.inverse_norm`): its gradient goes through the division.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from facerec.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

Rows = TypeVar("Rows", np.ndarray, "torch.Tensor")


def row_norms(rows_ND: Rows) -> Rows:
    """Euclidean norms (N,) in the rows' own precision; in NumPy they neither over- nor underflow."""
    if not isinstance(rows_ND, np.ndarray):
        return _library(rows_ND).linalg.vector_norm(rows_ND, dim=-1)
    with np.errstate(over="ignore", invalid="ignore"):
        norm_N = np.sqrt(np.einsum("...d,...d->...", rows_ND, rows_ND))
        for row in map(tuple, np.argwhere(~((norm_N > 1e-15) & (norm_N < np.inf)))):
            largest = np.abs(rows_ND[row]).max(initial=0).astype(np.float64)
            if 0 < largest < np.inf:
                norm_N[row] = largest * np.linalg.norm(rows_ND[row] / largest)
    return norm_N


def unit_rows(rows_ND: Rows, what: str = "", *, first: int = 0, norm_N: Rows | None = None) -> Rows:
    """Rows divided by their norms; zero rows stay zero.

    Args:
        rows_ND: (…, D) floating-point numbers.
        what: refuse rows that are not finite, or whose norm is not, which else become NaN or zero, under this
            name (``template 17``, counted from `first`).
        norm_N: the rows' norms, where they are known.

    Raises:
        NonFiniteError: naming the first row that is not finite.
    """
    library: Any = _library(rows_ND)
    norm_N = row_norms(rows_ND) if norm_N is None else norm_N
    if what and not (finite_N := library.isfinite(norm_N)).all():
        row, more = first + int(library.nonzero(~finite_N)[0][0]), int((~finite_N).sum()) - 1
        which = f"{what} {row}" + (f" and {more:,} more of {len(norm_N):,}" if more else "")
        raise NonFiniteError(f"{which} is not finite, or too long for its precision; check the model")
    return rows_ND / library.where(norm_N == 0, 1, norm_N)[..., None]


def _library(rows: Any) -> ModuleType:
    if isinstance(rows, np.ndarray):
        return np
    import torch  # whoever has a tensor has it already

    return torch
