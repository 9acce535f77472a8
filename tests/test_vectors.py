"""Unit rows and their norms are one function for NumPy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import normalize

from facerec.errors import NonFiniteError
from facerec.vectors import row_norms, unit_rows

ROWS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
ROWS[7] = 0


@pytest.mark.parametrize("rows", [ROWS, ROWS.astype(np.float64), torch.from_numpy(ROWS)], ids=str)
def test_rows_are_divided_by_their_norms_and_zero_rows_stay_zero(rows: Any) -> None:
    unit = unit_rows(rows)
    assert type(unit) is type(rows) and unit.dtype == rows.dtype
    np.testing.assert_allclose(np.asarray(unit), normalize(ROWS), rtol=1e-6)
    assert not unit[7].any()
    assert (unit_rows(rows, norm_N=row_norms(rows)) == unit).all()


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_a_row_that_is_not_finite_is_named(make: Any) -> None:
    rows = make([[1.0, 2.0], [float("nan"), 1.0]])
    with pytest.raises(NonFiniteError, match="template 11 is not finite, or too long for"):
        unit_rows(rows, "template", first=10)
    assert unit_rows(rows)[1].sum() != 0  # unchecked where nothing names the rows


def test_norms_beyond_the_precision_of_their_squares_are_exact() -> None:
    rows = np.array([[3e30, 4e30], [3e-30, 4e-30]], np.float32)
    np.testing.assert_allclose(row_norms(rows), [5e30, 5e-30], rtol=1e-6)
