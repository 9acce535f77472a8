"""Several processes train what one would: the same weights, the same log, and each other's checkpoints."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.errors import ConfigError, FacerecError, NonFiniteError, UserError
from facerec.models.checkpoint import newest_checkpoint
from facerec.training import parallel
from facerec.training.loop import Trainer
from facerec.training.reporter import Run
from tests import tiny_run
from tests.several import run_ranks
from tests.test_training import At, Rows
from tests.tiny_run import tiny_backbone, tiny_trainer

# Nothing here depends on which process an image goes to, so that all numbers of processes must agree.
# The last of the batches of 14 has 7 images, which two ranks divide unevenly.
EXACT: dict[str, Any] = {"dropout": 0.0, "each": 7, "start_freeze_batch_norm": True, "optimizer_lr": 0.01}
SHARED_OUT = {"sharded": True}


def run(folder: Path, name: str, given: dict[str, Any], resume: bool = False, until: int = 0) -> Trainer:
    """Train; leave the whole weights and the log as process 0 has them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows()
    trainer = tiny_trainer(folder / "run", reporters=[rows, At(until, stop)], **given)
    if resume:
        last = newest_checkpoint(trainer.checkpoints)
        assert last is not None
        trainer.resume(last)
    trainer.fit()
    weights = dict(trainer.backbone.state_dict())
    for key, value in trainer.head.state_dict().items():
        parts = distributed.all_gather_object(value.clone())
        weights[f"head.{key}"] = torch.cat(parts) if key in trainer.head.sharded_parameters else parts[0]
    if distributed.rank() == 0:
        torch.save(weights, folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps([dict(row) for row in rows.rows]))
    return trainer


def all_runs(folder: Path) -> None:
    """Several runs in the same processes, to start them only once."""
    batch = 14 // distributed.world_size()
    exact = {**EXACT, "trainer_batch_size": batch}
    for head in ("arcface", "softmax", "sphereface2"):
        run(folder / "a" / head, "weights", {**exact, "head": head, "head_options": SHARED_OUT})
    run(folder / "replicated", "weights", {**exact, "head_options": {"sharded": False}})
    accumulated = {**exact, "trainer_batch_size": batch // 7, "trainer_accumulate": 7}
    run(folder / "accumulated", "weights", {**accumulated, "head_options": SHARED_OUT})
    clipped = {**exact, "trainer_clip_norm": 0.05}
    run(folder / "clipped", "weights", {**clipped, "head_options": SHARED_OUT})
    run(folder / "bf16", "weights", {**exact, "trainer_gradient_exchange": "bf16"})


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    all_runs(one)
    run_ranks(2, two, all_runs)
    return one, two


def assert_close(one: Path, other: Path) -> None:
    first, second = torch.load(one), torch.load(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    "name", ["a/arcface", "a/softmax", "a/sphereface2", "replicated", "accumulated", "clipped"]
)
def test_two_processes_end_with_the_weights_of_one_that_takes_their_batches_together(
    one_and_two: tuple[Path, Path], name: str
) -> None:
    one, two = one_and_two
    assert_close(one / name / "weights.pt", two / name / "weights.pt")


def test_gradients_exchanged_in_bf16_differ_by_their_rounding(one_and_two: tuple[Path, Path]) -> None:
    one, two = (torch.load(folder / "bf16" / "weights.pt") for folder in one_and_two)
    plain = torch.load(one_and_two[1] / "replicated" / "weights.pt")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=2e-2, atol=2e-3, msg=name)
    assert any(not torch.equal(two[name], plain[name]) for name in one if not name.startswith("head"))


def test_the_log_of_two_processes_is_that_of_one(one_and_two: tuple[Path, Path]) -> None:
    first, second = (json.loads((f / "a/arcface/weights.json").read_text()) for f in one_and_two)
    assert len(first) == len(second) > 5
    for a, b in zip(first, second, strict=True):
        for key in ("step", "epoch", "lr", "loss", "grad_norm", "target_cosine", "accuracy"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key


def interrupted(folder: Path) -> None:
    given = {"head_options": {"sharded": True, "sample_rate": 0.5}, "trainer_batch_size": 3}
    trainer = run(folder, "part", {**given, "trainer_log_every": 2}, until=4)
    assert trainer.interrupted == signal.SIGTERM
    assert trainer.position.step == 4
    run(folder, "resumed", {**given, "trainer_log_every": 2}, resume=True)
    run(folder / "straight", "whole", {**given, "trainer_log_every": 2})


def test_a_signal_to_one_process_ends_all_at_a_step_and_they_go_on_to_the_bit(tmp_path: Path) -> None:
    """With dropout, batch norm and sampled classes: every process's random numbers go on, too."""
    run_ranks(2, tmp_path, interrupted)
    resumed, whole = torch.load(tmp_path / "resumed.pt"), torch.load(tmp_path / "straight" / "whole.pt")
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name


def faults(folder: Path) -> None:
    """Raise an error on one rank only; every rank reports it."""
    given = {"head_options": {"sharded": True, "sample_rate": 0.5}, "trainer_batch_size": 3}
    steps = {"trainer_save_every": 2, "trainer_log_every": 1}
    trainer = tiny_trainer(folder / "nan", reporters=[At(3, partial(spoil, torch.nan))], **given, **steps)
    with pytest.raises(NonFiniteError, match=r"step 4: .*nan/checkpoints/last-00000002 is the last good"):
        trainer.fit()
    given["head_options"] = {"sharded": False}
    for every, found in ((True, 3), (2, 4)):
        given |= {"reporters": [At(3, partial(spoil, 1e-6))], "trainer_check_replicas": every}
        trainer = tiny_trainer(folder / "drift", **given)
        with pytest.raises(
            FacerecError, match=rf"^step {found}: head\.weight of rank 1 is not that of rank 0"
        ):
            trainer.fit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "tiny_backbone", with_a_parameter_that_does_nothing)
        trainer = tiny_trainer(folder / "idle", **given)
        with pytest.raises(ConfigError, match="idle takes no part in the loss"):
            trainer.fit()
    with pytest.raises(UserError, match=r"^head\.m: is 0 on rank 0 and 1 on rank 1"):
        parallel.require_same_on_all_ranks({"seed": 0, "head.m": distributed.rank()})
    with pytest.raises(UserError, match="of rank 0"):
        distributed.rank_zero_result(partial(fail, f"of rank {distributed.rank()}"))
    assert distributed.rank_zero_result(distributed.rank) == 0


def with_a_parameter_that_does_nothing(dropout: float) -> nn.Module:
    backbone = tiny_backbone(dropout)
    backbone.idle = nn.Parameter(torch.zeros(1))
    return backbone


def fail(why: str) -> None:
    raise UserError(why)


def stop(_: Run) -> None:
    """Send a signal to one process."""
    if distributed.rank() == 0:
        os.kill(os.getpid(), signal.SIGTERM)


def spoil(change: float, run: Run) -> None:
    """Change the class weights of rank 1."""
    if distributed.rank() == 1:
        with torch.no_grad():
            run.head.weight += change


def test_what_goes_wrong_on_one_rank_is_found_and_said_by_all(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, faults)


def half(name: str, folder: Path, further: dict[str, Any], until: int = 0) -> None:
    size = 6 // distributed.world_size()
    given = {**EXACT, "each": 6, "trainer_batch_size": size, "head_options": SHARED_OUT}
    run(folder, name, {**given, **further}, resume=not until, until=until)


def first_half(folder: Path, background: bool) -> None:
    half("half", folder, {"trainer_save_in_background": background}, until=3)


def second_half(folder: Path) -> None:
    half(f"from_{distributed.world_size()}", folder, {"trainer_keep_last": 1})


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    whole = tmp_path / "whole"
    given = {**EXACT, "each": 6, "trainer_batch_size": 6, "head_options": SHARED_OUT}
    run(whole, "weights", given)
    if before == 1:
        first_half(tmp_path, False)
    else:
        run_ranks(before, tmp_path, first_half, after == 3)
    if after == 1:
        second_half(tmp_path)
    else:
        run_ranks(after, tmp_path, second_half)
    assert_close(whole / "weights.pt", tmp_path / f"from_{after}.pt")
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("last*"))
    assert left == (["last.pt"] if after == 1 else ["last-00000015"])


def test_samples_of_uneven_processes_are_gathered_and_given_back(tmp_path: Path) -> None:
    run_ranks(3, tmp_path, gather_uneven)


def gather_uneven(_: Path) -> None:
    sizes = [2, 0, 3]
    rank = distributed.rank()
    x = torch.full((sizes[rank], 2), float(rank), requires_grad=True)
    everyone: Tensor = distributed.Gather.apply(x, sizes)
    assert everyone[:, 0].tolist() == [0, 0, 2, 2, 2]
    assert distributed.local_samples(everyone, sizes).shape == x.shape
    (everyone * (rank + 1)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 6.0))  # 1 + 2 + 3: what all processes say of it
    assert distributed.all_reduce_mean(torch.tensor([float(rank)] * 2)) == 1.0
    assert distributed.broadcast_object(rank) == 0
    assert distributed.all_gather_object(rank) == [0, 1, 2]
