"""Files appear whole or not at all, and what dead processes left is cleared, never what living ones write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facerec.errors import DamagedDataError, StorageError
from facerec.files import Unfinished, clear, replacing, staging


def test_a_file_appears_at_the_end_and_not_at_all_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.idx"
    target.write_bytes(b"old")
    with replacing(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(ZeroDivisionError), replacing(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def test_only_what_nobody_writes_any_more_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "a.idx"
    living = Unfinished(target)
    (path,) = tmp_path.iterdir()
    young = tmp_path / ".a.idx.abcdefgh.tmp"
    dead = tmp_path / ".a.idx.12345678.tmp"
    of_an_earlier_version = tmp_path / ".a.idx.4711.tmp"
    ends = (".cache", ".partial.x.tmp", ".abcdefgh", "x.abcdefgh.tmp")
    others = [tmp_path / f".a.idx{end}" for end in ends]
    for one in (young, dead, of_an_earlier_version, *others):
        one.touch()
    for one in (path, dead, of_an_earlier_version, *others):
        os.utime(one, (0, 0))
    with replacing(target) as file:
        file.write(b"x")
    assert not dead.exists() and not of_an_earlier_version.exists()
    assert all(one.exists() for one in (path, young, *others))
    living.file.close()
    os.utime(path, (0, 0))
    with replacing(target):
        pass
    assert not path.exists()


def test_folders_of_dead_processes_are_cleared_as_files_are(tmp_path: Path) -> None:
    dead = tmp_path / ".out.12345678.tmp"
    (dead / "s1").mkdir(parents=True)
    os.utime(dead, (0, 0))
    with staging(tmp_path / "out") as stage:
        assert not dead.exists()
        os.utime(stage, (0, 0))
        clear(tmp_path)
        (stage / "a").touch()
        stage.rename(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_a_failed_write_is_a_line_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = r"file/a could not be written: .* MiB free\); whatever was there"
    with pytest.raises(StorageError, match=said), replacing(tmp_path / "file" / "a"):
        pass
    with pytest.raises(DamagedDataError, match="image 7"), replacing(tmp_path / "a"):
        try:
            raise OSError("image file is truncated")
        except OSError as error:
            raise DamagedDataError("image 7") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
