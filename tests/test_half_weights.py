"""Class weights in bf16: the loss is computed in fp32, and small steps arrive in the mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from facerec.errors import ConfigError
from facerec.heads import HEADS, create_head
from facerec.heads.base import ClassHead
from facerec.heads.mechanism.sharding import take_rows
from facerec.training.half_weights import half_weights, require_sgd, rounded_at_random
from tests.tiny_run import tiny_trainer

FAMILY = sorted(name for name in HEADS.names() if issubclass(HEADS.builder(name), ClassHead))


@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_is_that_of_fp32_weights_of_the_same_values(name: str) -> None:
    torch.manual_seed(0)
    half = create_head(name, num_classes=7, embedding_size=5, weight_dtype="bf16", init=0.5, block_size=3)
    full = create_head(name, num_classes=7, embedding_size=5, init=0.5, block_size=3)
    full.load_state_dict({k: v.to(full.state_dict()[k].dtype) for k, v in half.state_dict().items()})
    x, label = 3 * torch.randn(9, 5), torch.randint(7, (9,))
    grads = []
    for head in (half, full):
        torch.manual_seed(1)  # elasticface draws
        leaf = x.clone().requires_grad_()
        out = head(leaf, label)
        out.loss.backward()
        assert leaf.grad is not None and head.weight.grad is not None
        grads.append((out.loss.detach(), leaf.grad, head.weight.grad))
    assert half.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])
    torch.testing.assert_close(grads[0][2].float(), grads[1][2], rtol=1e-2, atol=1e-4)


def test_rounding_at_random_is_right_in_the_mean_and_leaves_bf16_numbers_alone() -> None:
    torch.manual_seed(0)
    x = torch.tensor([1.0 + 2**-10, -3.0 - 2**-9, 0.1])
    mean = torch.stack([rounded_at_random(x).double() for _ in range(20_000)]).mean(0)
    torch.testing.assert_close(mean, x.double(), rtol=1e-4, atol=0)
    assert (x.bfloat16().double() - x.double()).abs().max() > 5e-4, "rounding to the nearest is not"
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(rounded_at_random(exact.float()), exact)


def make(dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 24).view(8, 3).to(dtype))


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_steps_follow_sgd_in_fp32(settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    weights = {dtype: make(dtype) for dtype in (torch.bfloat16, torch.float32)}
    start = weights[torch.float32].detach().clone()
    gradient = torch.randn(8, 3)
    for dtype, weight in weights.items():
        optimizer = torch.optim.SGD([weight], lr=1e-3, weight_decay=0.01, fused=True, **settings)
        for _ in range(200):  # each step is far below the distance of bf16 numbers
            weight.grad = gradient.to(dtype)
            with half_weights(optimizer):
                optimizer.step()
    moved = weights[torch.bfloat16].detach().float() - start
    wanted = weights[torch.float32].detach() - start
    assert wanted.norm() > 0.1
    assert (moved - wanted).norm() < 0.1 * wanted.norm() + 0.03


def test_sampled_rows_alone_are_stepped() -> None:
    weight = make(torch.bfloat16)
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    (take_rows(weight, torch.tensor([1, 4])).float() ** 2).sum().backward()
    with half_weights(optimizer):
        optimizer.step()
    changed = (weight.detach() != before).any(1)
    assert changed.nonzero()[:, 0].tolist() == [1, 4]
    assert optimizer.state[weight]["momentum_buffer"].dtype == torch.bfloat16


def test_a_run_learns_and_resumes_with_them(tmp_path: Path) -> None:
    given = {"head_options": {"weight_dtype": "bf16"}, "trainer_epochs": 4, "optimizer_lr": 0.05}
    straight = tiny_trainer(tmp_path / "a", **given)
    straight.fit()
    assert straight.head.weight.dtype == torch.bfloat16
    first = tiny_trainer(tmp_path / "b", **{**given, "trainer_max_steps": 9})
    first.schedule = straight.schedule
    first.fit()
    second = tiny_trainer(tmp_path / "b", **given)
    second.resume(tmp_path / "b" / "checkpoints" / "last.pt")
    assert second.optimizer.state_dict()["state"]
    second.fit()
    assert second.position.step == straight.position.step


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "fp32"), ("sgd", "fp16")])
def test_what_they_do_not_go_with_is_refused(optimizer: str, precision: str) -> None:
    require_sgd(optimizer, precision, "fp32")
    with pytest.raises(ConfigError, match=r"head\.weight_dtype.*goes with optimizer=sgd"):
        require_sgd(optimizer, precision, "bf16")
