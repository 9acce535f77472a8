"""Running state of heads: in checkpoints, moving in training only, and repeatable."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from facerec.heads.base import Head
from tests.heads_cases import CLASSES, SIZE, STATEFUL, make

BATCH = 8
MOVING = ["adacos", "adaface", "center", "curricularface", "lsoftmax", "sface_quality", "sphereface"]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = 3 * torch.randn(BATCH, SIZE, generator=generator)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def train(head: Head, steps: range) -> list[float]:
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = head(*batch(step)).loss
        loss.backward()
        optimizer.step()
        head.after_step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", STATEFUL)
def test_resumed_from_its_state_dict_a_head_goes_on_exactly(name: str) -> None:
    straight = train(make(name), range(6))
    head = make(name)
    first = train(head, range(3))
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    resumed = make(name)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert first + train(resumed, range(3, 6)) == straight


@pytest.mark.parametrize("name", MOVING)
def test_without_its_state_a_head_goes_on_otherwise(name: str) -> None:
    straight = train(make(name), range(6))
    head = make(name)
    first = train(head, range(3))
    forgetful = make(name)
    forgetful.load_state_dict({k: v for k, v in head.state_dict().items() if k == "weight"}, strict=False)
    assert first + train(forgetful, range(3, 6)) != straight


@pytest.mark.parametrize("name", MOVING)
def test_state_moves_in_training_mode_only_and_carries_no_gradient(name: str) -> None:
    head = make(name)
    before = {k: v.clone() for k, v in head.named_buffers()}
    head.eval()(*batch(0))
    assert all(torch.equal(v, before[k]) for k, v in head.named_buffers())
    head.train()(*batch(0))
    head.after_step()
    assert any(not torch.equal(v, before[k]) for k, v in head.named_buffers())
    assert not any(v.requires_grad for v in head.buffers())


@pytest.mark.parametrize("name", ["adaface", "sface_quality"])
def test_running_norm_follows_mean_and_deviation(name: str) -> None:
    head = make(name, ema=0.1)
    mean, deviation = 20.0, 100.0
    for step in range(3):
        norm = batch(step)[0].norm(dim=1)
        head(*batch(step))
        mean = 0.9 * mean + 0.1 * float(norm.mean())
        deviation = 0.9 * deviation + 0.1 * float(norm.std())
    assert float(head.norm.mean) == pytest.approx(mean, rel=1e-5)
    assert float(head.norm.deviation) == pytest.approx(deviation, rel=1e-5)


@pytest.mark.parametrize("name", ["adaface", "magface", "sface_quality"])
def test_quality_heads_report_the_distribution_of_quality(name: str) -> None:
    statistics = make(name)(*batch(0)).statistics
    keys = ["quality_mean", "quality_deviation", "quality_p05", "quality_p50", "quality_p95"]
    mean, deviation, low, middle, high = (float(statistics[key]) for key in keys)
    assert low < middle < high
    assert low < mean < high
    assert deviation > 0
    if name == "magface":
        assert mean == pytest.approx(float(batch(0)[0].norm(dim=1).mean()))


def test_random_margins_repeat_with_the_seed() -> None:
    head = make("elasticface", sigma=0.2)

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return head(*batch(0)).loss.detach()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
