"""Stages within a run: settings change where they were to, all else goes on, a resume gives the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from facerec.cli.stages import _text
from facerec.errors import UserError
from facerec.models import checkpoint
from facerec.training.loop import Trainer
from facerec.training.schedules import SCHEDULES, Progress
from facerec.training.stages import Begin, Stages, entries
from tests import folder_run, several
from tests.folder_run import TINY, files, make_faces
from tests.test_cli_train import failed

# An epoch has three steps. Something of each kind, in the middle of an epoch and between two.
MANY = (
    "stages=[{step: 2, backbone.frozen: false, backbone.lr_scale: 0.5},"
    "{epoch: 1, head: arcface, head.m: 0.3, data.shuffle: block},"
    "{step: 5, head.s: 32, head.sample_rate: 0.7, data.augment.blur: 0.5, optimizer.lr: 0.01},"
    "{epoch: 2, head: subcenter, backbone.freeze: [conv1], schedule: cosine}]"
)
RUN = ("head=softmax", "backbone.frozen=true", "trainer.max_steps=8", "trainer.ema=0.9", MANY)


def train(cwd: Path, *settings: str) -> Any:
    return folder_run.train(cwd, "logger=[metrics]", *settings)


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the bit, through containers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for at, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{at}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_end(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in (
        "backbone",
        "head",
        "ema",
        "optimizer",
        "random",
        "step",
        "epoch",
        "sample",
        "stage",
        "origin",
    ):
        if part in one:
            assert_same(one[part], other[part], part)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ends runs by SIGTERM after a step, until it is given None."""
    at: list[int | None] = [None]
    after = Trainer.after_step

    def after_step(self: Trainer) -> None:
        after(self)
        if self.position.step == at[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "after_step", after_step)
    yield lambda step: at.__setitem__(0, step)


# -- what changes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run through all of `MANY`."""
    folder = tmp_path_factory.mktemp("whole")
    make_faces(folder / "faces")
    run = train(folder, *RUN, "output_dir=run")
    assert run.returncode == 0, run.stderr
    (folder / "said.txt").write_text(run.stdout)
    return folder


def test_each_stage_is_announced_and_said_in_a_line_where_it_begins(whole: Path) -> None:
    lines = (whole / "said.txt").read_text().splitlines()
    (announced,) = [line for line in lines if line.startswith("stages ")]
    assert announced.startswith("stages     1 at step 2: ") and announced.count(" at ") == 4
    assert [line for line in lines if line.startswith("stage ")] == [
        "stage 1    at step 2, epoch 0.667: backbone.frozen=false (was true), "
        "backbone.lr_scale=0.5 (was 1.0)",
        "stage 2    at step 3, epoch 1: head.name=arcface (was softmax), head.m=0.3 (was not set), "
        "data.shuffle=block (was full); class rows kept",
        "stage 3    at step 5, epoch 1.67: head.sample_rate=0.7 (was 1.0), head.s=32 (was 64.0), "
        "data.augment.blur=0.5 (was 0.0), optimizer.lr=0.01 (was 0.05); class rows kept",
        "stage 4    at step 6, epoch 2: head.name=subcenter (was arcface), "
        "schedule.name=cosine (was constant), backbone.freeze=[conv1] (was []); "
        "class rows start anew",
    ]


def test_rows_say_their_stage_and_the_checkpoint_the_settings_of_its_own(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [0, 0, 1, 2, 2, 3, 4, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.05] * 5 + [0.01, 0.01, 0.005])
    state = last(whole / "run")
    assert state["config"]["head"]["name"] == "subcenter" and state["began"]["head"]["name"] == "softmax"
    assert state["config"]["head"]["m"] == 0.3 and state["config"]["backbone"]["freeze"] == ["conv1"]
    assert state["head"]["weight"].shape[0] == 3 and state["head"]["weight"].ndim == 3


@pytest.mark.parametrize("step", [2, 5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 7))])
def test_a_run_resumed_in_any_stage_ends_as_the_whole_one_to_the_bit(
    whole: Path, stop: Any, step: int
) -> None:
    name = f"output_dir=stopped{step}"
    stop(step)
    assert train(whole, *RUN, name).returncode == 128 + signal.SIGTERM
    stop(None)
    again = train(whole, *RUN, name)
    assert again.returncode == 0, again.stderr
    assert "changed " not in again.stdout
    assert_same_end(last(whole / f"stopped{step}"), last(whole / "run"))


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_the_head_first_then_all_is_a_run_frozen_and_one_resumed_without(work: Path, optimizer: str) -> None:
    given = [f"optimizer={optimizer}", "optimizer.lr=0.01", "backbone.lr_scale=0.1"]
    change = "stages=[{step: 2, backbone: {frozen: false, lr_scale: 0.2}}]"
    one = train(work, *given, "backbone.frozen=true", "trainer.max_steps=4", change, "output_dir=one")
    assert one.returncode == 0, one.stderr
    assert "ignored" not in one.stdout, "backbone.lr_scale is of use later"
    assert (
        train(work, *given, "backbone.frozen=true", "trainer.max_steps=2", "output_dir=two").returncode == 0
    )
    again = train(work, *given, "backbone.lr_scale=0.2", "trainer.max_steps=4", "output_dir=two")
    assert again.returncode == 0, again.stderr
    for part in ("backbone", "head", "optimizer", "random"):
        assert_same(last(work / "one")[part], last(work / "two")[part], part)


def test_softmax_then_arcface_keeps_the_class_rows_and_their_momentum(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    build = Stages._build

    def watched(self: Stages, trainer: Trainer, number: int) -> str:
        momentum = trainer.optimizer.state[trainer.head.weight]["momentum_buffer"].clone()
        before = trainer.head.weight.detach().clone(), momentum
        said = build(self, trainer, number)
        momentum = trainer.optimizer.state[trainer.head.weight]["momentum_buffer"].clone()
        seen.append((before, (trainer.head.weight.detach().clone(), momentum)))
        return said

    monkeypatch.setattr(Stages, "_build", watched)
    given = ["head=softmax", "trainer.max_steps=3", "stages=[{step: 2, head: arcface}]", "output_dir=two"]
    assert train(work, *given).returncode == 0
    ((before, after),) = seen
    assert_same(list(before), list(after))
    anew = train(work, *given[:-2], "stages=[{step: 2, head.init: 0.02}]", "output_dir=anew")
    assert "head.init=0.02 (was 0.01); class rows start anew" in anew.stdout
    ((before, after),) = seen[1:]
    assert not torch.equal(before[0], after[0]) and not after[1].any()


def test_other_images_take_over_between_two_epochs_with_class_rows_of_their_own(
    work: Path, stop: Any
) -> None:
    make_faces(work / "other", ("dora", "emil", "fred", "gina"), images=6)
    given = ["trainer.max_steps=7", "stages=[{epoch: 1, data.root: other}, {epoch: 2, head.m: 0.4}]"]
    run = train(work, *given, "output_dir=whole")
    assert run.returncode == 0, run.stderr
    assert "stage 1    at step 3, epoch 1: data.root=other (was faces); class rows start anew" in run.stdout
    state = last(work / "whole")
    assert state["classes"] == ["dora", "emil", "fred", "gina"] and state["images"] == 24
    assert len(state["head"]["weight"]) == 4
    stop(4)
    assert train(work, *given, "output_dir=parts").returncode == 128 + signal.SIGTERM
    stop(None)
    assert train(work, *given, "output_dir=parts").returncode == 0
    assert_same_end(last(work / "parts"), state)


def test_the_steps_of_a_run_over_sets_of_different_size_are_known_before(work: Path) -> None:
    make_faces(work / "other", ("dora", "emil", "fred", "gina"), images=10)
    given = ["trainer.epochs=2.5", "stages=[{epoch: 1, data.root: other}]", "output_dir=x"]
    run = train(work, *given)
    assert run.returncode == 0, run.stderr
    assert "finished   at step 11 of 11" in run.stdout, "3 steps, 5, and 3 of the next 5"
    assert "3 steps per epoch, 11 in all" in run.stdout


def test_what_of_a_schedule_lies_beyond_the_steps_it_has_is_said(work: Path) -> None:
    long = ["trainer.epochs=2", "schedule.warmup=1e12"]
    run = train(work, *long, "trainer.dry_run=true")
    rises = "the learning rate rises to the end, to 2e-12 of optimizer.lr at most"
    assert f"beyond     schedule.warmup=1e+12 (epochs; there are 2): {rises}\n" in run.stdout, run.stderr
    steps = ["schedule=multistep", "schedule.unit=steps", "schedule.warmup=2"]
    stages = "stages=[{step: 3, schedule.warmup: 4}, {step: 5, optimizer.lr: 0.01}]"
    run = train(work, *steps, "schedule.milestones=[2,3]", "trainer.epochs=2", stages, "output_dir=y")
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("beyond")]
    drop = "schedule.milestones=[3] (steps; there are 3): no drop comes"
    rises = "the learning rate rises to the end, to 0.75 of optimizer.lr at most"
    assert line == f"beyond     {drop}; schedule.warmup=4 (steps; there are 3): {rises}; {drop}"
    run = train(work, "trainer.epochs=2", "schedule.warmup=2", "output_dir=z")
    assert run.returncode == 0 and "beyond " not in run.stdout


def test_a_schedule_of_a_stage_spans_what_is_left() -> None:
    cosine = SCHEDULES.from_section({"name": "cosine", "unit": "steps", "warmup": 2})
    start = Progress(40, 4.0, 0.4, 0.1)
    rest = [Progress(step, step / 10, step / 100, 0.1).since(start) for step in range(40, 100)]
    alone = [Progress(step, step / 10, step / 60, 0.1) for step in range(60)]
    np.testing.assert_allclose([cosine.factor(one) for one in rest], [cosine.factor(one) for one in alone])


# -- what may change at a resume -----------------------------------------------------------------------------


def test_stages_to_come_may_change_at_a_resume_and_those_begun_may_not(work: Path, stop: Any) -> None:
    given = ["output_dir=x", "trainer.max_steps=6"]
    stop(4)
    first = train(work, *given, "stages=[{step: 2, head: cosface, head.m: 0.4},{step: 5, head.m: 0.3}]")
    assert first.returncode == 128 + signal.SIGTERM
    stop(None)
    before = files(work / "x")
    for stages, said in (
        ("[{step: 1, head: cosface, head.m: 0.4}]", "belongs to a run with other settings: stages="),
        (
            "[{step: 2, head: cosface, head.m: 0.1}]",
            "belongs to a run with other settings: head.m=0.1 (was 0.4)",
        ),
        ("[]", "that run is in its stage 1, and this one has 0; give it the same stages"),
        (
            "[{step: 2, head: cosface, head.m: 0.4},{step: 3, optimizer.lr: 1}]",
            "that run is at step 4, epoch 1.33, and stage 2 was to begin at step 3; let it begin later",
        ),
    ):
        assert said in failed(train(work, *given, f"stages={stages}"))
    same = "stages=[{step: 2, head: cosface, head.m: 0.4}]"
    other = "belongs to a run with other settings: head.name=softmax (was arcface)"
    assert other in failed(train(work, *given, "head=softmax", same)), "of the run, though it is past"
    assert files(work / "x") == before
    run = train(work, *given, "stages=[{step: 2, head: cosface, head.m: 0.4},{step: 5, optimizer.lr: 0.001}]")
    assert run.returncode == 0, run.stderr
    assert "changed    stages=" in run.stdout and "stage 2    at step 5" in run.stdout


@pytest.mark.slow
def test_a_run_falls_back_on_a_checkpoint_of_an_earlier_stage(work: Path, stop: Any) -> None:
    given = ["trainer.max_steps=6", "stages=[{step: 3, head: subcenter}]", "trainer.save_every=2"]
    assert train(work, *given, "output_dir=whole").returncode == 0
    stop(5)
    assert train(work, *given, "output_dir=x").returncode != 0
    stop(None)
    newest, older = (work / "x" / "checkpoints" / name for name in ("last.pt", "last.1.pt"))
    assert (checkpoint.load(newest)["stage"], checkpoint.load(older)["stage"]) == (1, 1)
    shutil.copy(work / "run" / "checkpoints" / "last.pt", older)  # the same run before its first stage
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = train(work, *given, "output_dir=x")
    assert again.returncode == 0, again.stderr
    assert re.search(r"goes on from \S+/x/checkpoints/last\.1\.pt", again.stdout)
    assert_same_end(last(work / "x"), last(work / "whole"))


def test_a_run_with_stages_is_repeated_and_swept(work: Path) -> None:
    given = ["head=softmax", "head.init=0.02", "trainer.max_steps=3", "stages=[{step: 2, head: arcface}]"]
    assert train(work, *given, "output_dir=x").returncode == 0
    again = train(work, "--from", "x", "output_dir=y")
    assert again.returncode == 0, again.stderr
    assert_same_end(last(work / "y"), last(work / "x"))
    sweep = train(
        work, "-m", "output_dir=z", *given[2:-1], "stages=[{step: 2, optimizer.lr: 0.01}]", "seed=1"
    )
    assert sweep.returncode == 0, sweep.stderr
    assert "stage 1    at step 2" in sweep.stdout


# -- several ranks -------------------------------------------------------------------------------------------

RANKS = [
    *(one for one in TINY if not one.startswith(("data.root", "trainer.batch_size"))),
    "logger=[metrics]",
    *("trainer.batch_size=3", "head.sharded=true", "head=softmax", "trainer.max_steps=8"),
    "backbone.frozen=true",
    "stages=[{step: 2, backbone.frozen: false},{step: 4, head: arcface, head.sample_rate: 0.5},"
    "{step: 6, backbone.freeze: [conv1], backbone.freeze_batch_norm: true}]",
]


def in_ranks(folder: Path) -> None:
    given = [*RANKS, f"data.root={folder / 'faces'}", "trainer.check_replicas=true"]
    several.train(folder, {"whole": given})
    after = Trainer.after_step

    def stopping(self: Trainer) -> None:
        after(self)
        if self.position.step == 5 and torch.distributed.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.after_step = stopping  # type: ignore[method-assign]
    several.train(folder, {"parts": given})
    Trainer.after_step = after  # type: ignore[method-assign]
    several.train(folder, {"parts": given})


def test_all_ranks_change_alike_and_go_on_to_the_bit(tmp_path: Path) -> None:
    make_faces(tmp_path / "faces", tuple("abcdef"))
    several.run_ranks(2, tmp_path, in_ranks)
    for name in ("whole", "parts"):
        said = (tmp_path / f"{name}.0.txt").read_text()
        assert said.splitlines()[-1] == "0", said
    whole, parts = (
        checkpoint.open_checkpoint(checkpoint.newest_checkpoint(tmp_path / name / "checkpoints") or Path())
        for name in ("whole", "parts")
    )
    assert whole.rest["step"] == parts.rest["step"] == 8 and whole.rest["stage"] == 3
    for section in ("backbone", "head", "optimizer"):
        assert_same(parts.read(section), whole.read(section), section)


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("5", "stages=5: must be a list, of an entry with step or epoch, and settings"),
        ("[head]", "must be a list, of an entry with step or epoch"),
        ("[{head.m: 0.3}]", "stage 1: needs either step or epoch above 0"),
        ("[{step: 1, epoch: 1, head.m: 0.3}]", "stage 1: needs either step or epoch above 0"),
        ("[{step: 0, head.m: 0.3}]", "stage 1: needs either step or epoch above 0"),
        ("[{step: 1.5, head.m: 0.3}]", "stage 1: needs either step or epoch above 0"),
        ("[{step: 1}]", "stage 1 (step 1): changes no setting"),
        (
            "[{step: 1, trainer.batch_size: 4}]",
            "stage 1 (step 1): trainer.batch_size=4: stays the same in a run",
        ),
        ("[{step: 1, backbone: ir_18}]", "stage 1 (step 1): backbone=ir_18: stays the same in a run"),
        ("[{step: 1, backbone.pretrained: x}]", "backbone.pretrained=x: stays the same in a run"),
        ("[{step: 1, optimizer: adamw}]", "optimizer=adamw: stays the same in a run"),
        ("[{step: 1, head.sharded: true}]", "head.sharded=true: stays the same in a run"),
        ("[{step: 1, data.size: 64}]", "stage 1 (step 1): data.size=64: stays the same in a run"),
        ("[{step: 1, without: head.m}]", "stage 1 (step 1): without=head.m: must be a list of settings"),
    ],
)
def test_what_is_no_stage_is_refused_by_its_number(stages: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        entries(yaml.safe_load(stages))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("5", "stages=5: must be a list, of an entry with step or epoch, and settings"),
        (
            "[{step: 1, trainer.batch_size: 4}]",
            "stage 1 (step 1): trainer.batch_size=4: stays the same in a run",
        ),
        ("[{step: 1, head.m: 0.5}]", "stage 1 (step 1): changes no setting"),
        (
            "[{step: 1, head.mm: 0.3}]",
            "stage 1 (step 1): head.mm: no such setting (from it or the command line",
        ),
        ("[{step: 1, head: arcfase}]", "stage 1 (step 1): head=arcfase: no such head; did you mean arcface"),
        ("[{step: 1, head.m: 7}]", "stage 1 (step 1): head.m=7: an angular margin must be"),
        ("[{step: 1, head.m: much}]", "stage 1 (step 1): head.m=much: must be a number"),
        (
            "[{step: 1, backbone.freeze: [stem]}]",
            "backbone.freeze=stem: matches no parameter of the backbone",
        ),
        ("[{step: 1, data.shuffle: block}]", "stage 1 (step 1): data.shuffle=block: changes images or their"),
        ("[{epoch: 0.5, data.root: faces2}]", "stage 1 (epoch 0.5): data.root=faces2: changes images or"),
        ("[{epoch: 1, data: casia}]", "data=casia: data.root=faces is that of before; give data.root, too"),
        (
            "[{epoch: 1, head: triplet}]",
            "stage 1 (epoch 1): head=triplet: of arcface and triplet only one has",
        ),
        ("[{epoch: 1, data: [faces], data.root: C}]", "stage 1 (epoch 1): data.root=C: is of one data set"),
        ("[{epoch: 1, data.root: nowhere}]", "stage 1 (epoch 1): data.root=nowhere: there is no such folder"),
        ("[{step: 1, head: triplet}]", "stage 1 (step 1): head"),
        (
            "[{step: 2, head.m: 0.3},{step: 2, head.m: 0.2}]",
            "stage 2 (step 2): begins after 2 steps, and must",
        ),
        (
            "[{step: 4, head.m: 0.3},{epoch: 1, head.m: 0.2}]",
            "stage 2 (epoch 1): begins after 3 steps, and must",
        ),
        ("[{epoch: inf, head.m: 0.3}]", "stage 1: needs either step or epoch above 0, where it begins"),
        ("[{epoch: 1e300, head.m: 0.3}]", "stage 1: needs either step or epoch above 0, where it begins"),
        ("{}", "stages={}: is a mapping, and that setting is a list"),
        ("[{step: 9, head.m: 0.3}]", "stage 1 (step 9): begins after 9 steps, and the run ends after 6"),
        ("[{epoch: 2, head.m: 0.3}]", "stage 1 (epoch 2): begins after 6 steps, and the run ends after 6"),
    ],
)
def test_what_cannot_be_a_stage_is_refused_before_the_first_step(work: Path, stages: str, said: str) -> None:
    run = train(work, "output_dir=x", "trainer.max_steps=6", f"stages={stages}")
    assert said in failed(run), run.stderr
    assert not (work / "x").exists()


def test_a_mixture_takes_over_between_two_epochs_and_its_sources_are_said(work: Path) -> None:
    make_faces(work / "more", ("dora", "emil"))
    run = train(work, "output_dir=x", "trainer.epochs=2", "stages=[{epoch: 1, data: [faces, more]}]")
    assert run.returncode == 0, run.stderr
    assert "data.sources=[faces,more] (was not set); class rows start anew" in run.stdout
    assert len(last(work / "x")["head"]["weight"]) == 5


def test_a_teacher_was_made_for_one_head(work: Path) -> None:
    given = ["output_dir=x", "teacher.ckpt=run/checkpoints/last.pt", "trainer.max_steps=6"]
    line = failed(train(work, *given, "stages=[{step: 1, head: cosface}]"))
    assert "stage 1 (step 1): head: stays the same with a teacher" in line


def test_a_setting_of_the_command_line_that_a_stage_has_no_use_for_can_be_left_out(work: Path) -> None:
    given = ["output_dir=x", "trainer.max_steps=2", "head.m=0.4"]
    line = failed(train(work, *given, "stages=[{step: 1, head: softmax}]"))
    assert (
        "stage 1 (step 1): head.m: no such setting (from it or the command line, with head=softmax)" in line
    )
    run = train(work, *given, "stages=[{step: 1, head: softmax, without: [head.m]}]")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0.5,
        3,
        -1e-9,
        "block",
        "null",
        "it's 'so'",
        "a b",
        "/x/y,z",
        "",
        {"body.[0-9].*": 0.1},
        [1, "a=b"],
    ],
)
def test_a_value_is_what_it_was_behind_the_grammar_of_a_command_line(value: Any) -> None:
    assert OverridesParser.create().parse_overrides([f"key={_text(value)}"])[0].value() == value


def test_sections_within_an_entry_are_dotted_names() -> None:
    (one,) = entries(
        [{"epoch": 2, "backbone": {"frozen": False}, "head": "arcface", "data.augment.blur": 0.1}]
    )
    assert one.begin == Begin(epoch=2)
    assert one.given == {"backbone.frozen": False, "head": "arcface", "data.augment.blur": 0.1}
    with pytest.raises(UserError, match="stage 1: needs"):
        entries([{"step": True, "head": "arcface"}])
