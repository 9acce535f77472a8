"""Every head equals its formula, written out naively in float64: loss and gradients, however computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from facerec.heads import create_head
from facerec.heads.base import ClassHead, Head
from tests.heads_cases import CASES, CLASS_HEADS, CONSTANT, expected
from tests.heads_reference import REFERENCES

CLASSES, SIZE, BATCH = 9, 6, 14
SETTINGS = [(name, parameters) for name in REFERENCES for parameters in [{}, *CASES.get(name, [])]]
IDS = [f"{name}{parameters or ''}" for name, parameters in SETTINGS]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of many lengths, a third of them near their class, a third opposite it; their labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    return x * torch.linspace(0.3, 3, BATCH, dtype=torch.float64)[:, None], y


def make(name: str, **parameters: Any) -> tuple[Head, Tensor, Tensor]:
    """A float64 head with random weights and state in evaluation mode, where its state rests; and a batch."""
    torch.manual_seed(1)
    head = create_head(name, num_classes=CLASSES, embedding_size=SIZE, **parameters).double().eval()
    assert isinstance(head, ClassHead)
    with torch.no_grad():
        head.weight.normal_()
        if head.bias is not None:
            head.bias.normal_()
        for part, value in {"norm.mean": 3.0, "norm.deviation": 1.7, "t": 0.3}.items():
            if part in dict(head.named_buffers()):
                head.get_buffer(part).fill_(value)
        if name == "center":
            head.centre_CD.normal_()
        x, y = batch()
        own = head.weight[y] if head.weight.ndim == 2 else head.weight[y, 1]
        x[0::3] += 2 * own[0::3]
        x[1::3] -= 2 * own[1::3]
    return head, x.requires_grad_(), y


@pytest.mark.parametrize(("memory", "block_size"), [("keep", 4), ("recompute", None)])
@pytest.mark.parametrize(("name", "parameters"), SETTINGS, ids=IDS)
def test_loss_and_gradients_are_those_of_the_formula(
    name: str, parameters: dict[str, Any], memory: str, block_size: int | None
) -> None:
    head, x, y = make(name, **parameters, block_size=block_size, memory=memory)
    variables = [x, *head.parameters()]
    loss = head(x, y).loss
    gradients = torch.autograd.grad(loss, variables)
    right = expected(name, head, x, y)
    right_gradients = torch.autograd.grad(right, variables)

    assert abs(loss - right) < 1e-10 * max(1, abs(right))
    for got, wanted in zip(gradients, right_gradients, strict=True):
        assert wanted.abs().max() > 1e-8  # a test on gradients that vanish would say nothing
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threshold", [None, 0.1])
@pytest.mark.parametrize("name", [name for name in REFERENCES if CONSTANT.get(name, {}) is not None])
def test_gradcheck(name: str, threshold: float | None) -> None:
    torch.manual_seed(0)
    settings = {"memory": "recompute", "block_size": 2, **(CONSTANT.get(name) or {})}
    settings |= {"interclass_filtering": threshold}
    head = create_head(name, num_classes=4, embedding_size=3, init=1.0, **settings).double().eval()
    parameters = dict(head.named_parameters())
    y = torch.tensor([1, 2])

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), (x, y)).loss

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert head(x, y).statistics.get("filtered_negatives", 0) > 0 or threshold is None
    assert torch.autograd.gradcheck(loss, [x, *parameters.values()], eps=1e-7, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", CLASS_HEADS)
def test_statistics_are_plain_means_of_cosines_without_margin(name: str) -> None:
    head, x, y = make(name, block_size=4)
    x = x.detach()
    statistics = head(x, y).statistics
    assert all(value.ndim == 0 and not value.requires_grad for value in statistics.values())
    weight = head.weight.detach().view(CLASSES, -1, SIZE)
    cosine = torch.nn.functional.cosine_similarity(x[:, None, None], weight[None], dim=3).amax(2)
    own = torch.nn.functional.one_hot(y, CLASSES).bool()
    others = cosine[~own].view(BATCH, -1)
    wanted = {
        "target_cosine": cosine[own].mean(),
        "target_angle": cosine[own].arccos().rad2deg().mean(),
        "other_cosine": others.mean(),
        "hardest_cosine": others.amax(1).mean(),
        "accuracy": (cosine.argmax(1) == y).double().mean(),
        "embedding_norm": x.norm(dim=1).mean(),
    }
    assert 0 < wanted["accuracy"] < 1
    for key, value in wanted.items():
        assert float(statistics[key]) == pytest.approx(float(value), abs=1e-6), key


FUSED = [
    pytest.param(name, {}, marks=[] if name in ("arcface", "sface") else pytest.mark.slow)
    for name in CLASS_HEADS
]


@pytest.mark.parametrize(("name", "further"), [*FUSED, ("mvsoftmax", {"interclass_filtering": 0.3})])
def test_fused_passes_compute_the_same(name: str, further: dict[str, Any]) -> None:
    torch._dynamo.reset()
    results = []
    for fused in (False, True):
        head, x, y = make(name, block_size=4, fused=fused, **further)
        output = head(x, y)
        gradients = torch.autograd.grad(output.loss, [x, *head.parameters()])
        results.append([output.loss, *gradients, *output.statistics.values()])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10, equal_nan=True)
