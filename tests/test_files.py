"""Files appear whole or not at all, and what dead processes left is cleared, never what living ones write."""

from __future__ import annotations

import csv
import io
import os
import stat
from pathlib import Path

import pytest

from facerec.errors import DamagedDataError, StorageError
from facerec.files import Unfinished, clear, csv_lines, replacing, replacing_both, staging


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
    said = r"file/a could not be written: (Not a directory|File exists); what was there before is kept"
    with pytest.raises(StorageError, match=said), replacing(tmp_path / "file" / "a"):
        pass
    with pytest.raises(DamagedDataError, match="image 7"), replacing(tmp_path / "a"):
        try:
            raise OSError("image file is truncated")
        except OSError as error:
            raise DamagedDataError("image 7") from error


def test_two_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    one, other = tmp_path / "a.bin", tmp_path / "a.tsv"

    def write(first: bytes, second: bytes) -> None:
        with replacing_both(one, other) as (file, beside):
            file.write(first)
            beside.write(second)

    write(b"1", b"one")
    write(b"2", b"two")
    assert (one.read_bytes(), other.read_bytes()) == (b"2", b"two")
    with pytest.raises(StorageError, match="full"), replacing_both(one, other) as (file, _):
        file.write(b"3")
        raise OSError(28, "full")
    assert (one.read_bytes(), other.read_bytes()) == (b"2", b"two")
    one.unlink()
    one.mkdir()  # a name that cannot be taken
    with pytest.raises(StorageError, match=r"a\.bin could not be written"):
        write(b"4", b"four")
    assert other.read_bytes() == b"two"
    one.rmdir()
    write(b"5", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"], "one of its own that is empty is none"


def test_a_spreadsheet_takes_no_cell_for_a_formula() -> None:
    formulas = ["=cmd|' /C calc'!A0", "+1+1", "-a.jpg", "@sum", "\t=1", "\r=1", "＝1", "-inf"]
    others = ["-0.5", "+3e-4", "a=b", ""]
    wanted = [*(f"'{one}" for one in formulas), *others]
    content = csv_lines([formulas + others, [-1, -0.5, None]])
    assert list(csv.reader(io.StringIO(content.decode(), newline=""))) == [wanted, ["-1", "-0.5", ""]]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"), replacing(tmp_path / "pipe") as file:
        file.write(b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
