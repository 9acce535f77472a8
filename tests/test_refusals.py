"""Refusals of a run before it trains, and its messages on settings and losses that lead nowhere."""

from __future__ import annotations

import json
import logging
import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from facerec.backbones import create_backbone
from facerec.backbones.flops import activation_bytes
from facerec.cli.base import reported
from facerec.cli.embed import run as embed
from facerec.errors import UserError
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.training.plateau import Plateau
from facerec.training.schedules import Progress
from facerec.training.state import Position
from tests.folder_run import NETWORK
from tests.test_cli_train import command, done, failed, process, succeeded
from tests.tiny_run import TinyFaces

RUN = [*NETWORK, "data=synthetic", "data.identities=4", "data.images=24", "trainer.batch_size=4"]
RUN += ["trainer.max_steps=1", "optimizer.lr=0.01", "data.workers=1", "eval.targets=[]", "output_dir=run"]
PAIRS = ["head=triplet", "data.shuffle=full"]


@pytest.mark.parametrize("take", [torch.empty, lambda size: np.empty(size, np.uint8)])
def test_memory_that_does_not_suffice_is_one_line(take, capsys: pytest.CaptureFixture[str]) -> None:
    assert reported("facerec-train", lambda: take(1 << 52)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("facerec-train: out of memory: ") and "lower trainer.batch_size" in line


def test_a_message_is_one_line_that_a_terminal_only_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError("a\nb\x1b[2J\udcff.jpg: is no image")

    assert reported("facerec-embed", fail) == 2
    assert capsys.readouterr().err == "facerec-embed: a b\\x1b[2J\\udcff.jpg: is no image\n"


@pytest.mark.parametrize("name", ["a" * 300, "loop/x"])
def test_paths_that_no_system_takes_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    run = command("facerec-eval", f"ckpt={name}", "output_dir=out", cwd=tmp_path)
    line = failed(run, run.returncode or 1)
    assert name in line
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_ended_before_it_begins_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(_: object) -> None:
        assert (tmp_path / "run/.lock").exists()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("facerec.training.run.open_faces", terminated)  # at that very moment
    assert command("facerec-train", *RUN, cwd=tmp_path).returncode == 143
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_trains_where_no_batch_norm_looks_at_it(tmp_path: Path) -> None:
    settings = ["trainer.batch_size=1", "backbone.freeze_batch_norm=true"]
    assert command("facerec-train", *RUN, *settings, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("count", [8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [None, True, False])
@pytest.mark.parametrize("start", [0, 2])
def test_the_smallest_batch_is_the_smallest_that_comes(
    count: int, world_size: int, drop_last: bool | None, start: int
) -> None:
    faces = TinyFaces(identities=count, each=1)
    data = DataSettings(size=16, drop_last=drop_last)
    loader = Loader(faces, 2, data, world_size=world_size)
    sizes = [size for batch in loader.batches(0, start) for size in batch.sizes]
    assert loader.smallest_batch(start) == min(sizes, default=2)


def test_pairs_that_chance_hardly_brings_and_a_loss_of_0_to_the_end_are_said(tmp_path: Path) -> None:
    settings = [*PAIRS, "data.identities=60", "data.images=120", "trainer.max_steps=3", "seed=1"]
    done("facerec-train", *RUN, *settings, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [0, 0, 0]
    said = (tmp_path / "run" / "train.log").read_text()
    assert "head=triplet: a batch of 4 has 0.05 pairs of one identity on average" in said
    assert "step 3: the loss has been exactly 0, and nothing is learnt, since step 0. Usual causes: " in said


def warned(
    caplog: pytest.LogCaptureFixture, losses: list[float], *, begin: int = 0, lr: float = 0.1
) -> list[str]:
    """The warnings of a run of 4,000 steps whose log has these losses, a row per 20 steps."""
    caplog.clear()
    head = SimpleNamespace(num_classes=100, sample_rate=1.0, weight=None)
    run: Any = SimpleNamespace(head=head, position=Position(step=begin))
    plateau = Plateau()
    plateau.started(run)
    with caplog.at_level(logging.WARNING):
        for number, loss in enumerate(losses, 1):
            step = begin + 20 * number
            run.progress = partial(Progress, step, 0.0, step / 4000, 0.0)
            plateau.logged(run, {"step": step, "lr": lr, "loss": loss, "accuracy": 0.02})
    return [record.getMessage().partition(". Usual causes")[0] for record in caplog.records]


def test_a_loss_that_stays_where_nothing_is_learnt_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 60).tolist()
    falling = [20 - 0.1 * i + noise[i] for i in range(60)]
    zero = warned(caplog, [*falling, *[0.0] * 30])
    assert zero == ["step 1600: the loss has been exactly 0, and nothing is learnt, since step 1200"]
    guess = warned(caplog, [*falling, *[float(np.log(100)) + 0.1 * x for x in noise[:30]]])
    assert guess == ["step 1600: the loss has stayed at 4.61, that of guessing, since step 1200"]
    (flat,) = warned(caplog, [20 + x for x in noise])
    assert flat.startswith("step 440: the loss has not left its start, 19.99") and flat.endswith(
        "since step 40"
    )


def test_a_loss_that_falls_or_a_run_that_goes_on_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert not warned(caplog, [20 - 0.05 * i for i in range(60)])
    assert not warned(caplog, [3.0] * 60, begin=1000)
    assert not warned(caplog, [0.0, 1.0] * 60)


def test_settings_without_a_use_are_named(tmp_path: Path) -> None:
    settings = ["data.images_per_identity=2", "data.decoder=device", "data.augment.jpeg_quality=50"]
    settings += ["trainer.sync_batch_norm=true", "eval.cache=x", "data.window=3"]
    run = done("facerec-train", *RUN, *settings, cwd=tmp_path)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("ignored")]
    for said in (
        "data.images_per_identity=2 (for data.shuffle=identity)",
        "data.decoder=device (for GPUs",
        "data.augment.jpeg_quality=50 (for data.augment.jpeg above 0)",
        "trainer.sync_batch_norm=true (for several processes)",
        "eval.cache=x (for facerec-eval)",
        "data.window=3 (for data.shuffle=block)",
    ):
        assert said in line
    assert line.count("=") == 8  # nothing else: two of the uses have one too


@pytest.mark.parametrize("name", ["mobilefacenet", "ir_50", "sphere20"])
def test_the_forecast_knows_what_a_backward_pass_needs(name: str) -> None:
    size = 32
    backbone = create_backbone(name, embedding_size=16, input_size=size).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[int, torch.Tensor] = {}
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    forecast = activation_bytes(backbone, size)
    assert all(value.equal(backbone.state_dict()[name]) for name, value in before.items())
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x) is None or x, lambda x: x
    ):
        output = backbone(torch.randn(4, 3, size, size))
    real = sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in own) / len(output)
    assert forecast == pytest.approx(real, rel=0.05)


@pytest.mark.slow
def test_a_run_takes_the_memory_that_its_log_says(tmp_path: Path) -> None:
    peaks = {}
    for batch in (8, 72):
        settings = [f"trainer.batch_size={batch}", "data.images=288", "data.size=112", f"output_dir={batch}"]
        run = succeeded(process("facerec-train", *RUN, *settings, "trainer.max_steps=2", cwd=tmp_path))
        row = json.loads((tmp_path / str(batch) / "metrics.jsonl").read_text().splitlines()[-1])
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("memory")]
        amount, unit = line.split()[1:3]
        peaks[batch] = row["peak_memory"], float(amount) * {"MB": 1e-3, "GB": 1}[unit]
    measured, said = (peaks[72][i] - peaks[8][i] for i in (0, 1))
    assert said == pytest.approx(measured, rel=0.2)


def test_embed_takes_a_size_that_the_model_has_not_as_a_mistake(tmp_path: Path) -> None:
    assert command("facerec-train", *RUN, "trainer.max_steps=1", cwd=tmp_path).returncode == 0
    (tmp_path / "faces").mkdir()
    arguments = [tmp_path / "faces", tmp_path / "x.npy", "--ckpt", tmp_path / "run/checkpoints/last.pt"]
    for size in ("64", "32.5", "32,32,32", "0", "inf"):
        with pytest.raises(UserError, match=r"size|images|images"):
            embed([*map(str, arguments), "--size", size])
