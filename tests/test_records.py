"""Records of a run beside its checkpoints: complete rows, as of a run in one part, or a line and an end."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facerec import files
from facerec.models import checkpoint
from facerec.packs.recordio import Record, RecordWriter
from facerec.reporting.loggers.base import Figures, Logger
from facerec.reporting.loggers.metrics_file import MetricsFile
from facerec.reporting.loggers.tensorboard import TensorBoard
from tests.folder_run import NETWORK
from tests.foreign_files import png
from tests.test_cli_train import command, failed
from tests.test_training import At, interrupt
from tests.tiny_run import tiny_trainer

CLOCK = {"samples_per_second", "data_wait", "peak_memory", "tflops", "mfu"}
RUN = [
    *(*NETWORK, "data=synthetic", "data.identities=6", "data.images=48", "data.workers=1"),
    *(
        "trainer.batch_size=8",
        "trainer.max_steps=6",
        "optimizer.lr=0.01",
        "trainer.device=cpu",
        "eval.targets=[]",
        "output_dir=out",
    ),
]


def logger(kind: Callable[..., Logger], folder: Path) -> Logger:
    """A logger that writes to a folder, which is there."""
    folder.mkdir(exist_ok=True)
    return kind(folder=folder, figures=Figures())


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what the clock decides."""
    made = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in made]


def test_rows_after_a_resume_are_those_of_a_run_in_one_part(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer_log_every": 4, "trainer_epochs": 3}
    tiny_trainer(
        tmp_path / "unbroken", **settings, reporters=[logger(MetricsFile, tmp_path / "unbroken")]
    ).fit()
    for stop in (3, 6, None):
        trainer = tiny_trainer(tmp_path, **settings, reporters=[logger(MetricsFile, tmp_path)])
        if stop is not None:
            trainer.reporters = [*trainer.reporters, At(stop, interrupt)]
        if (tmp_path / "checkpoints" / "last.pt").is_file():
            trainer.resume(tmp_path / "checkpoints" / "last.pt")
        trainer.fit()
    assert rows(tmp_path) == rows(tmp_path / "unbroken")


def test_rows_are_dropped_by_replacing_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill right after a resume finds the old rows or the new ones, never an empty file."""
    path, trainer = tmp_path / "metrics.jsonl", tiny_trainer(tmp_path)
    before = '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st'
    path.write_text(before)
    trainer.position.step = 2

    def killed(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "fsync", killed)
        logger(MetricsFile, tmp_path).started(trainer)
    assert path.read_text() == before
    reporter = logger(MetricsFile, tmp_path)
    reporter.started(trainer)
    reporter.logged(trainer, {"step": 3, "loss": 1.0})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    """A first start that ends before any checkpoint, one that ends beyond its last, and one to the end."""

    def go(save: bool, stop: int | None) -> None:
        trainer = tiny_trainer(tmp_path, trainer_save_every=4, reporters=[logger(TensorBoard, tmp_path)])
        if stop is not None:
            trainer.reporters = [*trainer.reporters, At(stop, lose_power)]
        if (tmp_path / "checkpoints" / "last.pt").is_file():
            trainer.resume(tmp_path / "checkpoints" / "last.pt")
        try:
            trainer.fit()
        except ZeroDivisionError:
            assert stop is not None

    def lose_power(_: Any) -> None:
        raise ZeroDivisionError

    for stop in (3, 6, None):
        go(save=True, stop=stop)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, 16))


@pytest.mark.parametrize("full", ["metrics.jsonl", "train.log"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_record_on_a_full_disk_ends_the_run_in_a_line_after_it_was_saved(tmp_path: Path, full: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / full).symlink_to("/dev/full")
    said = ended(tmp_path, status=1)
    assert f"{full} could not be written: No space left on device" in said
    step = checkpoint.load(tmp_path / "out" / "checkpoints" / "last.pt")["step"]
    assert said.endswith(f"the run stops at step {step}") and 1 <= step <= 2


def test_a_place_for_records_that_cannot_be_used_is_said_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tensorboard").touch()
    assert "out/tensorboard could not be written: File exists" in ended(tmp_path, status=1)
    assert not (tmp_path / "out" / "checkpoints" / "last.pt").exists()


def test_a_closed_pipe_ends_the_run_in_a_line_after_it_was_saved(tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    said = ended(tmp_path, status=1, out=Closed())
    assert "standard output could not be written: Broken pipe" in said
    assert checkpoint.load(tmp_path / "out" / "checkpoints" / "last.pt")["step"] == 1


def test_a_pack_cut_short_under_a_run_ends_it_in_a_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with RecordWriter(tmp_path / "train.rec") as pack:
        for key in range(48):
            pixels = generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            pack.write(key, Record(0, float(key // 8), key, 0, png(pixels)))
    given = ["data=rec", "data.root=.", "data.size=32", "data.targets=[]", "data.on_error=skip"]
    program = Path(sys.executable).with_name("facerec-train")
    command = [
        program,
        *(one for one in RUN if not one.startswith("data")),
        *given,
        "trainer.max_steps=99999",
    ]
    run = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    rows = tmp_path / "out" / "metrics.jsonl"
    while run.poll() is None and not (rows.is_file() and rows.stat().st_size):
        time.sleep(0.05)
    os.truncate(tmp_path / "train.rec", 5000)  # of 150,000 bytes
    _, said = run.communicate(timeout=300)
    assert run.returncode == 1, said
    assert said.count("\n") == 1 and "train.rec: was changed while it was being read" in said
    assert checkpoint.load(tmp_path / "out" / "checkpoints" / "last.pt")["step"] >= 1


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that not even root may write to")
def test_a_read_only_output_folder_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/sys/kernel")
    assert "output_dir" in ended(tmp_path, status=2)


def ended(folder: Path, *, status: int, out: io.StringIO | None = None) -> str:
    """The one line that a run says before it ends."""
    return failed(command("facerec-train", *RUN, cwd=folder, out=out or io.StringIO()), status)
