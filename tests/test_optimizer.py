"""The optimizers are torch's fused kernels, and step as the plain loops over parameters do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from facerec.heads import create_head
from facerec.heads.mechanism.sampling import take_rows
from facerec.training.optimizers import OPTIMIZERS, make_optimizer, set_learning_rate
from facerec.training.parallel import Gradients
from facerec.training.schedules import SCHEDULES, Progress
from tests.tiny_run import tiny_backbone

WAYS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "plain sgd": {"name": "sgd", "momentum": 0.0},
    "adamw": {"name": "adamw", "lr": 1e-3},
}


@pytest.mark.parametrize("way", WAYS)
def test_fused_steps_are_the_plain_steps(way: str) -> None:
    torch.manual_seed(0)
    modules = [tiny_backbone(dropout=0.0).double()]
    modules.append(copy.deepcopy(modules[0]))
    settings = OPTIMIZERS.from_section(WAYS[way])
    optimizers = [make_optimizer(settings, {"backbone": module}, {"backbone": 0.5}) for module in modules]
    assert all(group["fused"] for group in optimizers[0].param_groups)
    for group in optimizers[1].param_groups:
        group.update(fused=False, foreach=False)
    for step in range(4):
        x_BCHW = torch.randn(5, 3, 16, 16, dtype=torch.float64)
        for module, optimizer in zip(modules, optimizers, strict=True):
            set_learning_rate(optimizer, 1 / (step + 1))
            optimizer.zero_grad(set_to_none=True)
            module(x_BCHW).square().sum().backward()
            optimizer.step()
    for ours, plain in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_the_norm_of_sampled_rows_counts_a_row_once_that_several_batches_drew() -> None:
    head = create_head("arcface", num_classes=6, embedding_size=2, sample_rate=0.5)
    for rows in ([0, 1, 2], [1, 2, 4]):
        take_rows(head.weight, torch.tensor(rows)).sum().backward()
    gradients = Gradients(torch.nn.Identity(), head)
    loss = torch.zeros(())
    whole = head.weight.grad.to_dense()
    gradients.reduce(2)
    norm, _ = gradients.norm(loss)
    torch.testing.assert_close(norm, whole.norm())
    gradients.clip(norm, 1.0)
    torch.testing.assert_close(head.weight.grad.to_dense(), whole / whole.norm())


def test_a_released_polynomial_begins_where_its_warm_up_ends() -> None:
    settings = {"name": "poly", "unit": "steps", "warmup": 2, "power": 1.0, "released": True}
    schedule = SCHEDULES.from_section(settings)
    factors = [schedule.factor(Progress(step, 0.0, step / 8, 0.1)) for step in range(8)]
    assert factors == pytest.approx([1, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    epochs = SCHEDULES.from_section({**settings, "unit": "epochs"})
    assert [epochs.factor(Progress(9, step, step / 8, 0.1)) for step in range(8)] == pytest.approx(factors)
