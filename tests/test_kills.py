"""SIGKILL at any moment: the same command again ends with the bits and records of a run left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facerec.models.checkpoint import list_checkpoints, newest_checkpoint, open_checkpoint
from facerec.models.checkpoint.folder import is_folder
from facerec.packs.verification import write_verification
from tests.foreign_files import png
from tests.several import start, train
from tests.test_checkpoints import equal
from tests.test_records import rows

# Rows of two steps, checkpoints of three: most fall into the middle of a row.
RUN = [
    *("backbone=mobilefacenet", "backbone.embedding_size=32", "backbone.input_size=32"),
    *("data=synthetic", "data.size=32", "data.identities=10", "data.images=46", "data.workers=1"),
    *("trainer.log_every=2", "trainer.save_every=3", "trainer.threads=1", "trainer.device=cpu"),
    *("trainer.epochs=99", "schedule=constant", "optimizer.lr=0.01", "head.sharded=true"),
    *("eval.targets=[tiny]", "eval.every_steps=8", "eval.bootstrap=0", "eval.figures=false", "eval.folds=2"),
]
Moment = Callable[[Path], bool]


def more_rows(count: int) -> Moment:
    """So many more rows of metrics are there than at first."""
    before: list[int] = []

    def moment(out: Path) -> bool:
        path = out / "metrics.jsonl"
        now = path.read_bytes().count(b"\n") if path.is_file() else 0
        before.append(now)
        return now >= before[0] + count

    return moment


def writing(rows: int) -> Moment:
    """A checkpoint is being written, after so many more rows: a file under its temporary name, or a folder
    that is not finished.
    """
    later = more_rows(rows)

    def moment(out: Path) -> bool:
        here = out / "checkpoints"
        files, folders = here.glob(".last.pt.*.tmp"), here.glob("last-*")
        under_way = any(files) or any(not is_folder(path) for path in folders)
        return later(out) and under_way

    return moment


def later(seconds: float) -> Moment:
    """So long after the folder of checkpoints is there."""
    begun: list[float] = []

    def moment(out: Path) -> bool:
        if (out / "checkpoints").is_dir() and not begun:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > seconds

    return moment


def run_until(moment: Moment | None, folder: Path, world: int, settings: list[str]) -> bool:
    """The command, to its end or until `moment` of its output folder, when all its processes are killed."""
    running = start(world, folder, train, {"out": settings})
    while moment is not None and any(process.is_alive() for process in running.processes):
        if moment(folder / "out"):
            for process in running.processes:
                os.kill(process.pid, signal.SIGKILL)
            for process in running.processes:
                process.join()
            return True
        time.sleep(0.001)
    while not running.join():
        pass
    for rank in range(world):
        said = (folder / f"out.{rank}.txt").read_text()
        assert said.splitlines()[-1] == "0", said
    return False


def final_state(out: Path) -> list[Any]:
    """All that the newest checkpoint holds, but for the names of folders."""
    path = newest_checkpoint(out / "checkpoints")
    assert path is not None
    opened = open_checkpoint(path)
    rest = {key: value for key, value in opened.rest.items() if key != "config"}
    return [rest, *(opened.read(section) for section in ("backbone", "head", "optimizer"))]


def records(out: Path) -> dict[str, Any]:
    """Return the records of metrics.jsonl, results.json and TensorBoard."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in ("train/loss", "train/grad_norm", "val_tiny/accuracy", "val_tiny/xnorm")
    }
    results = json.loads((out / "results.json").read_text().replace(str(out), "OUT"))
    return {"metrics": rows(out), "results": results, "tensorboard": scalars}


def survive(folder: Path, world: int, moments: list[Moment], steps: int, *settings: str) -> None:
    """Kill the command at each of `moments`, let it end, and compare it with one that was left alone."""
    generator = np.random.default_rng(0)
    images = [png(generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)) for _ in range(16)]
    write_verification(folder / "tiny.bin", images, [True, False] * 4)
    command = [*RUN, f"eval.root={folder}", f"trainer.batch_size={12 // world}"]
    command += [f"trainer.max_steps={steps}", *settings]
    run_until(None, folder / "alone", world, command)
    for moment in moments:
        assert run_until(moment, folder / "killed", world, command), "it ended before it could be killed"
    run_until(None, folder / "killed", world, command)
    alone, killed = folder / "alone" / "out", folder / "killed" / "out"
    assert equal(final_state(killed), final_state(alone))
    assert records(killed) == records(alone)
    shown = records(killed)["tensorboard"]
    assert [step for step, _ in shown["train/loss"]] == list(range(2, steps + 1, 2))
    assert [step for step, _ in shown["val_tiny/accuracy"]] == list(range(8, steps + 1, 8))
    left = (killed / "checkpoints").glob("last*")
    assert sorted(left) == sorted(list_checkpoints(killed / "checkpoints"))


@pytest.mark.parametrize(
    ("world", "moments", "settings"),
    [
        (1, [more_rows(4), writing(1)], []),
        (2, [writing(2), more_rows(3)], ["trainer.save_in_background=true"]),
        pytest.param(3, [writing(4)], [], marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_goes_on_to_the_bit_and_keeps_its_records(
    tmp_path: Path, world: int, moments: list[Moment], settings: list[str]
) -> None:
    survive(tmp_path, world, moments, 24, *settings)


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_many_killed_commands_go_on_to_the_bit_and_keep_their_records(
    tmp_path: Path, world: int, background: bool
) -> None:
    """Nine of each, 54 in all: while a checkpoint is written, and at moments drawn by chance."""
    chosen = random.Random(10 * world + background)
    moments: list[Moment] = []
    for _ in range(3):
        drawn = [
            writing(chosen.randrange(3)),
            later(chosen.uniform(0, 1.5)),
            more_rows(chosen.randrange(1, 4)),
        ]
        moments += chosen.sample(drawn, 3)
    survive(tmp_path, world, moments, 72, f"trainer.save_in_background={background}", "trainer.save_every=2")
