"""The training loop: it learns, it can be interrupted anywhere, and it goes on exactly where it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from facerec import load_model
from facerec.errors import CheckpointError, NonFiniteError, StorageError
from facerec.models import checkpoint
from facerec.training.loop import Trainer
from facerec.training.reporter import Reporter, Run
from tests.making import full_disk
from tests.tiny_run import tiny_trainer


class Rows(Reporter):
    """Keeps every logged row."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        self.rows.append(row)


class At(Reporter):
    """Does something after a given step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def stepped(self, run: Run) -> None:
        if run.position.step == self.step:
            self.action(run)


def interrupt(_: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {**trainer.backbone.state_dict(), **{f"head.{k}": v for k, v in trainer.head.state_dict().items()}}


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    rows = Rows()
    tiny_trainer(tmp_path, trainer_epochs=12, optimizer_lr=0.05, reporters=[rows]).fit()
    losses = [row["loss"] for row in rows.rows]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    def trained(name: str, seed: int) -> dict[str, torch.Tensor]:
        trainer = tiny_trainer(tmp_path / name, seed=seed)
        trainer.fit()
        return weights(trainer)

    first = trained("first", 1)
    assert_identical(first, trained("same", 1))
    assert not torch.equal(first["head.weight"], trained("other", 2)["head.weight"])


@pytest.mark.parametrize("head", ["arcface", "sphereface", "softmax"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_in_mid_epoch_ends_with_bit_identical_weights(
    tmp_path: Path, head: str, accumulate: int
) -> None:
    settings: dict[str, Any] = {"head": head, "trainer_accumulate": accumulate}
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.fit()

    stopped = tiny_trainer(tmp_path / "parts", **settings, reporters=[At(4, interrupt)])
    stopped.fit()
    assert stopped.interrupted == signal.SIGTERM
    assert stopped.position.step == 4
    assert 0 < stopped.position.sample < 30, "the interruption must fall inside an epoch"

    resumed = tiny_trainer(tmp_path / "parts", **settings)
    resumed.resume(tmp_path / "parts" / "checkpoints" / "last.pt")
    resumed.fit()
    assert resumed.position.step == whole.position.step
    assert_identical(weights(resumed), weights(whole))


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path)
    first.fit()
    again = tiny_trainer(tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert_identical(weights(first), weights(again))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_end_the_run_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    trainer = tiny_trainer(tmp_path, reporters=[At(2, lambda _: os.kill(os.getpid(), number))])
    before = signal.getsignal(number)
    trainer.fit()
    assert trainer.interrupted == number
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 2
    assert signal.getsignal(number) is before


def test_accumulating_batches_steps_by_the_gradient_of_all_of_them(tmp_path: Path) -> None:
    def gradient(batch_size: int, accumulate: int) -> torch.Tensor:
        trainer = tiny_trainer(
            tmp_path / str(batch_size),
            trainer_batch_size=batch_size,
            trainer_accumulate=accumulate,
            trainer_max_steps=1,
            start_freeze_batch_norm=True,
        )
        trainer.backbone[4].p = 0.0  # dropout and batch norm alone would tell the two apart
        trainer.fit()
        return trainer.head.weight.grad

    torch.testing.assert_close(gradient(20, 1), gradient(5, 4), rtol=1e-4, atol=1e-6)


def test_the_last_step_of_an_epoch_weighs_its_batches_by_their_sizes(tmp_path: Path) -> None:
    """30 samples as 4 × 7 + 2: five steps of one batch, or two of three and two batches."""
    for accumulate, steps in ((1, 5), (3, 2)):
        trainer = tiny_trainer(tmp_path / str(accumulate), trainer_epochs=1, trainer_accumulate=accumulate)
        trainer.fit()
        assert trainer.position.step == steps
        assert (trainer.position.epoch, trainer.position.sample) in ((1, 0), (0, 30))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_layer(tmp_path: Path) -> None:
    def poison(trainer: Trainer) -> None:
        trainer.save()
        with torch.no_grad():
            trainer.backbone[0].weight[0] = torch.nan

    trainer = tiny_trainer(tmp_path, reporters=[At(2, poison)])
    with pytest.raises(NonFiniteError, match=r"step 3: .*backbone\.\d.*last\.pt"):
        trainer.fit()
    kept = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert kept["step"] == 2
    assert all(value.isfinite().all() for value in kept["backbone"].values())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_nan_among_sampled_class_weights_is_named_as_what_it_is(
    tmp_path: Path, clip_norm: float | None
) -> None:
    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.head.weight[:] = torch.nan

    trainer = tiny_trainer(
        tmp_path,
        reporters=[At(2, poison)],
        head_options={"sample_rate": 0.5},
        trainer_clip_norm=clip_norm,
        start_frozen=True,
    )
    with pytest.raises(NonFiniteError, match=r"step 3: .*the gradient of head\.weight; no checkpoint"):
        trainer.fit()


def test_clipping_bounds_the_norm_of_the_change(tmp_path: Path) -> None:
    rows = Rows()
    trainer = tiny_trainer(
        tmp_path,
        trainer_clip_norm=1e-3,
        trainer_max_steps=1,
        optimizer_weight_decay=0.0,
        optimizer_lr=1.0,
        reporters=[rows],
        start_freeze_batch_norm=True,
        schedule_name="constant",
    )
    parameters = [p for module in trainer.modules.values() for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    trainer.fit()
    change = torch.stack([(p.detach() - q).norm() for p, q in zip(parameters, before, strict=True)]).norm()
    assert rows.rows[0]["grad_norm"] > 1e-2, "the reported norm is the one before clipping"
    assert change == pytest.approx(1e-3, rel=1e-3)


def test_the_backbone_may_be_clipped_alone(tmp_path: Path) -> None:
    change: dict[str, float] = {}
    for part in ("all", "backbone"):
        trainer = tiny_trainer(
            tmp_path / part,
            trainer_clip_norm=1e-3,
            trainer_clip_part=part,
            trainer_max_steps=1,
            optimizer_weight_decay=0.0,
            optimizer_lr=1.0,
            schedule_name="constant",
        )
        before = [p.detach().clone() for p in trainer.backbone.parameters()]
        head_before = trainer.head.weight.detach().clone()
        trainer.fit()
        pairs = zip(trainer.backbone.parameters(), before, strict=True)
        norm = torch.stack([(p.detach() - q).norm() for p, q in pairs]).norm()
        change |= {part: norm.item(), f"{part}, head": (trainer.head.weight - head_before).norm().item()}
    assert change["all"] < 1e-3 > change["all, head"]
    assert change["backbone"] == pytest.approx(1e-3, rel=1e-3)
    assert change["backbone, head"] > 1e-2


def test_a_frozen_backbone_stays_as_it_is_down_to_its_running_statistics(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, start_frozen=True)
    before = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    head_before = trainer.head.weight.detach().clone()
    trainer.fit()
    assert_identical(before, trainer.backbone.state_dict())
    assert not torch.equal(head_before, trainer.head.weight)


def test_bf16_trains_and_keeps_fp32_weights(tmp_path: Path) -> None:
    rows = Rows()
    trainer = tiny_trainer(tmp_path, trainer_precision="bf16", trainer_epochs=2, reporters=[rows])
    trainer.fit()
    assert trainer.head.weight.dtype == torch.float32
    assert all(row["loss"] > 0 for row in rows.rows)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    before = path.read_bytes()
    with full_disk(100_000), pytest.raises(StorageError, match=r"could not be written.*kept"):
        checkpoint.save(path, {"weights": torch.zeros(10**6)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"], "no half file is left"


def test_a_checkpoint_that_names_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"backbone": Evil()}, tmp_path / "evil.pt")
    checkpoint.load(tmp_path / "evil.pt")  # in its place stands what does nothing
    with pytest.raises(CheckpointError, match="system"):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_missing_checkpoint_names_those_that_are_there(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "best.pt", {})
    with pytest.raises(CheckpointError, match=r"no such file; that folder has best\.pt"):
        checkpoint.load(tmp_path / "bset.pt")


def test_a_slower_backbone_gets_groups_of_its_own(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path, start_lr_scale=0.1, schedule_name="constant", optimizer_lr=0.2, trainer_epochs=1
    )
    trainer.fit()
    rates = {round(group["lr"], 6) for group in trainer.optimizer.param_groups}
    assert rates == {0.02, 0.2}


def test_the_backbone_in_training_mode_has_its_modules_in_training_mode(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, start_freeze_batch_norm=True)
    trainer.set_modes()
    modes = {type(module): module.training for module in trainer.backbone}
    assert modes[nn.BatchNorm2d] is False and modes[nn.Dropout] is True
