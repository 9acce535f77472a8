"""Files appear whole or not at all, and what dead processes left is cleared, never what living ones write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facerec.data.whole import open_temporary, whole_file


def test_a_file_appears_at_the_end_and_not_at_all_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.idx"
    target.write_bytes(b"old")
    with whole_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ZeroDivisionError), whole_file(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def test_only_what_nobody_writes_any_more_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "a.idx"
    living, path = open_temporary(target)
    young = tmp_path / ".a.idx.abcdefgh"
    dead = tmp_path / ".a.idx.12345678"
    others = [
        tmp_path / name for name in (".a.idx.cache", ".a.idx.partial.x", ".b.idx.abcdefgh", "a.idx.abcdefgh")
    ]
    for one in (young, dead, *others):
        one.touch()
    for one in (path, dead, *others):
        os.utime(one, (0, 0))
    with whole_file(target) as file:
        file.write(b"x")
    assert not dead.exists()
    assert all(one.exists() for one in (path, young, *others))
    living.close()
    os.utime(path, (0, 0))
    with whole_file(target):
        pass
    assert not path.exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "no" / "a"):
        pass
