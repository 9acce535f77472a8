"""Between log lines the host never waits for the device: nothing in a step asks for a number.

The stand-in for a GPU is torch's meta device: its tensors have shapes but no values, so whatever the host
wants to know of them (``item``, ``tolist``, ``cpu``, ``bool``, ``nonzero``, a mask as an index) raises.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import prepare
from facerec.training import parallel
from facerec.training.loop import Trainer
from tests.heads_cases import CLASS_HEADS
from tests.tiny_run import tiny_trainer

META = torch.device("meta")


class Asked(TorchDispatchMode):
    """Notes the operations that read a number from a tensor, or whose result's shape depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has no autocast for this device, nor numbers of the CPU in an operation with ``out``."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(
        Preprocessing, "normalise", lambda _, image_BHWC, out_BHWC: out_BHWC.copy_(image_BHWC)
    )


pytestmark = pytest.mark.usefixtures("_on_meta")


def without_values(folder: Path, head: str, **given: Any) -> Trainer:
    """A trainer whose device holds no values; its batches are real and come out of the real loader."""
    trainer = tiny_trainer(folder, head=head, trainer_log_every=1000, **given)
    for group in trainer.optimizer.param_groups:  # kernels of fused optimizers exist for real devices only
        group.update(fused=False, foreach=True)
    modules = {"backbone": trainer.backbone.to(META), "head": trainer.head.to(META)}
    return replace(trainer, **modules, device=META, reporters=[])


def run(trainer: Trainer, steps: int = 2) -> None:
    """The first steps as `Trainer.fit` takes them."""
    trainer.set_modes()
    batches_of_steps = trainer.batches_of_steps()
    with contextlib.closing(batches_of_steps):  # type: ignore[type-var]
        for batches in itertools.islice(batches_of_steps, steps):
            trainer.step(batches)
            trainer.after_step()
    assert trainer.position.step == steps


# Losses over pairs pick out the pairs that count, whose number they must know.


@pytest.mark.parametrize("name", CLASS_HEADS)
def test_steps_of_every_head_never_wait(name: str, tmp_path: Path) -> None:
    trainer = without_values(tmp_path, name)
    run(trainer)
    with pytest.raises(RuntimeError):
        trainer.meter.row()  # a log line does wait, and would be seen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("head", ["arcface", "sface", "adaface"])
def test_nor_with_clipping_accumulation_and_either_optimizer(
    head: str, optimizer: str, tmp_path: Path
) -> None:
    run(without_values(tmp_path, head, trainer_clip_norm=1.0, trainer_accumulate=2, optimizer_name=optimizer))


@pytest.mark.parametrize("head", ["arcface", "sface", "curricularface"])
def test_nor_with_sampled_classes(head: str, tmp_path: Path) -> None:
    run(without_values(tmp_path, head, head_options={"sample_rate": 0.9}, trainer_clip_norm=1.0))


def test_nor_with_a_frozen_backbone(tmp_path: Path) -> None:
    run(without_values(tmp_path, "arcface", start_frozen=True))


@pytest.mark.parametrize("ask", [Tensor.item, Tensor.tolist, Tensor.cpu, bool, Tensor.nonzero])
def test_whatever_asked_for_a_number_would_be_seen(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = parallel.Gradients.norm

    def asking(self: parallel.Gradients, loss: Tensor) -> tuple[Tensor, Tensor]:
        ask(loss)
        return norm(self, loss)

    monkeypatch.setattr(parallel.Gradients, "norm", asking)
    with pytest.raises((RuntimeError, NotImplementedError)):
        run(without_values(tmp_path, "arcface"))


def test_images_are_prepared_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    trainer = tiny_trainer(tmp_path)
    with Asked() as asked:
        for (batch,) in trainer.batches_of_steps():
            prepare(batch, trainer.device, trainer.input)
    assert asked.names == []
    with Asked() as asked:
        x = torch.ones(2)
        x[0].item(), x.nonzero(), bool(x.any()), x[x > 0]
    assert len(asked.names) == 4
