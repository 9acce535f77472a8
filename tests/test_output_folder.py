"""The output folder of a run: one command at a time, its log, and nothing left of commands that fail."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.folder_run import TINY, make_faces, train
from tests.test_cli_train import command, failed, logged


def test_a_folder_in_use_is_refused_by_process_and_host_until_the_process_is_gone(work: Path) -> None:
    program = Path(sys.executable).with_name("facerec-train")
    endless = [str(program), *TINY, "output_dir=run", "trainer.epochs=100000", "trainer.save_every=1"]
    first = subprocess.Popen(endless, cwd=work, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert any(line.startswith("step ") for line in first.stdout), "it trains"
    line = failed(train(work, "output_dir=run"))
    assert f"process {first.pid} on host {os.uname().nodename} is at work in it" in line
    first.kill()
    first.wait()
    assert (work / "run" / ".lock").exists(), "a killed process leaves the file, and no lock"
    assert train(work, "output_dir=run", "trainer.epochs=0.1").returncode == 0
    assert not (work / "run" / ".lock").exists()


def test_a_file_system_without_locks_is_said_and_does_not_keep_a_run_from_starting(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    run = train(work, "output_dir=run", "trainer.max_steps=2")
    assert run.returncode == 0 and "no locks here (No locks available)" in run.stdout


def test_runs_and_sweeps_of_the_same_second_get_folders_of_their_own(work: Path) -> None:
    """A century stands for the second that the default folder is named after."""
    for _ in range(2):
        assert train(work, "output_dir=runs/${now:%C}", "trainer.max_steps=1").returncode == 0
        assert (
            train(work, "-m", "output_dir=sweeps/${now:%C}", "trainer.max_steps=1", "seed=1").returncode == 0
        )
    assert sorted(p.name for p in (work / "runs").iterdir()) == ["20", "20-2"]
    assert sorted(p.name for p in (work / "sweeps").iterdir()) == ["20", "20-2"]
    for run in ("runs/20", "runs/20-2", "sweeps/20/0", "sweeps/20-2/0"):
        assert (work / run / "checkpoints" / "last.pt").is_file() and (work / run / ".hydra").is_dir(), run
    assert "output_dir: " + str(work / "runs/20-2") in (work / "runs/20-2/.hydra/config.yaml").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["facerec-train", *TINY, "trainer.batch_size=0"],
        ["facerec-train", *TINY, "data.root=/nowhere", "output_dir=deep/run"],
        ["facerec-train", *TINY, "trainer.resume=nowhere.pt"],
        ["facerec-train", "-m", *TINY, "trainer.batch_size=0", "seed=1,2"],
        ["facerec-train", "-m", *TINY, "head=arcfase,cosface"],
        ["facerec-eval", "ckpt=nowhere.pt"],
        ["facerec-eval"],
    ],
    ids=" ".join,
)
def test_a_command_that_fails_leaves_no_folder(tmp_path: Path, arguments: list[str]) -> None:
    make_faces(tmp_path / "faces", images=1)
    failed(command(*arguments, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_an_empty_folder_of_the_users_is_left_to_him(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    failed(train(tmp_path, "output_dir=mine"))
    assert not list((tmp_path / "mine").iterdir())


def test_the_log_has_what_a_terminal_showed_and_why_the_run_died(work: Path) -> None:
    master, slave = pty.openpty()
    program = Path(sys.executable).with_name("facerec-train")
    settings = [*TINY, "output_dir=died", "optimizer.lr=1e12", "trainer.epochs=9"]
    run = subprocess.Popen([str(program), *settings], cwd=work, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while chunk := read(master):
        shown += chunk
    assert run.wait(timeout=60) == 1
    log = logged(work / "died" / "train.log")
    assert log[0].startswith("data ")
    assert any(line.startswith("step 1 of 27  epoch 0.33  loss ") for line in log)
    assert log[-1].startswith("facerec-train: step 2: the loss or a gradient is not finite")
    assert log[-1] in " ".join(shown.decode().split()), "the same line as on the terminal"
    assert b"\nstep 1 of" not in shown, "where a bar stands for it"


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the other side has closed
        return b""


def test_the_log_says_that_a_signal_ended_the_run(work: Path) -> None:
    program = Path(sys.executable).with_name("facerec-train")
    endless = [str(program), *TINY, "output_dir=run", "trainer.epochs=100000"]
    run = subprocess.Popen(endless, cwd=work, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert any(line.startswith("step ") for line in run.stdout)
    run.send_signal(signal.SIGTERM)
    printed = run.stdout.read()
    assert run.wait(timeout=60) == 128 + signal.SIGTERM
    log = logged(work / "run" / "train.log")
    goes_on = re.compile(r"SIGTERM: saved at step [\d,]+ of 300,000; the same command goes on")
    assert any(map(goes_on.fullmatch, log))
    assert printed.splitlines()[-1] in log


def test_a_lock_that_is_somebodys_link_is_not_followed(work: Path) -> None:
    (work / "own").mkdir()
    (work / "mine").write_text("kept")
    (work / "own" / ".lock").symlink_to(work / "mine")
    assert "own: cannot be written" in failed(train(work, "output_dir=own"))
    assert (work / "mine").read_text() == "kept"
