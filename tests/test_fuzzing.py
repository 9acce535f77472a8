"""Lists of every kind are read as a plain reader reads them, whatever is in them (see `tests.fuzzing`)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.fuzzing import KINDS, check, corpus, inputs


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_is_read_as_it_says_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    for data in islice(inputs(kind, seed=9), len(corpus(kind)) + 200):
        check(kind, data, tmp_path / "list")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_list_is_read_as_it_says_or_refused_in_one_line_of_many(kind: str, tmp_path: Path) -> None:
    for data in islice(inputs(kind, seed=10), 20_000):
        check(kind, data, tmp_path / "list")
