"""Every head equals its formula, written out naively in float64: loss and gradients, however computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from facerec.heads import HEADS, create_head
from facerec.heads.base import ClassHead, Head
from tests.heads_reference import REFERENCES

CLASSES, SIZE, BATCH = 9, 6, 14
PAIRS = {"triplet", "contrastive"}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {}),
    ("l2softmax", {}),
    ("l2softmax", {"alpha": 3.0}),
    ("normface", {}),
    ("cosface", {}),
    ("cosface", {"s": 30.0, "m": 0.4}),
    ("arcface", {}),
    ("arcface", {"s": 8.0, "m": 1.2}),
    ("arcface", {"easy_margin": True}),
    ("combined", {}),
    ("combined", {"m1": 0.9, "m2": 0.4, "m3": 0.15}),
    ("combined", {"m1": 1.35, "m2": 0.0, "m3": 0.0}),
    ("sphereface", {}),
    *[("sphereface", {"m": m, "base": 0.0, "lambda_min": 0.5}) for m in (1, 2, 3, 4)],
    ("lsoftmax", {}),
    *[("lsoftmax", {"m": m, "base": 0.0, "lambda_min": 0.5}) for m in (1, 2, 3, 4)],
    ("sface", {}),
    ("sface", {"s": 10.0, "k": 5.0, "a": 0.8, "b": 1.23}),
    ("sface_quality", {}),
    ("sface_quality", {"h": 50.0, "k": 5.0, "c": 1.0}),
    ("center", {}),
    ("center", {"lambda_c": 0.5}),
    ("adaface", {}),
    ("adaface", {"m": 0.7, "h": 20.0}),
    ("magface", {}),
    ("magface", {"l_a": 1.0, "u_a": 5.0, "lambda_g": 3.0}),
    ("magface", {"l_a": 1.0, "u_a": 5.0, "easy_margin": True}),
    ("curricularface", {}),
    ("curricularface", {"s": 8.0, "m": 0.9}),
    ("elasticface", {}),
    ("elasticface", {"kind": "cos"}),
    ("subcenter", {}),
    ("subcenter", {"k": 2, "s": 8.0, "m": 0.3}),
    ("mvsoftmax", {}),
    ("mvsoftmax", {"kind": "arc", "m": 0.5}),
    ("mvsoftmax", {"adaptive": False, "easy_margin": True}),
    ("mvsoftmax", {"kind": "arc", "m": 0.5, "t": 0.3, "easy_margin": True}),
    ("circle", {}),
    ("circle", {"s": 16.0, "m": 0.4}),
    ("sphereface2", {}),
    ("sphereface2", {"r": 30.0, "m": 0.2, "t": 1.0, "lambda_p": 0.5, "loss_weight": 50.0}),
    ("adacos", {}),
    ("adacos", {"dynamic": False}),
    ("arcneg", {}),
    ("arcneg", {"alpha": 0.9, "sigma": 0.5}),
    ("npcface", {}),
    ("npcface", {"m0": 0.2, "m1": 0.6, "t": 1.3, "easy_margin": False}),
]
IDS = [f"{name}{parameters or ''}" for name, parameters in CASES]


def test_every_head_has_a_case_here() -> None:
    assert {name for name, _ in CASES} == set(HEADS.names()) - PAIRS


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


def expected(name: str, head: Head, x: Tensor, y: Tensor, parameters: dict[str, Any]) -> Tensor:
    """The reference's loss, given the head's weights and state."""
    given = {k: v for k, v in parameters.items() if k not in ("base", "lambda_min", "dynamic", "k")}
    if name in ("sface", "sface_quality"):
        given = parameters
    extra = {
        "softmax": lambda: {"b": head.bias},
        "l2softmax": lambda: {"b": head.bias},
        "center": lambda: {"b": head.bias, "centre": head.centre_CD},
        "sphereface": lambda: {"weight_of_plain": 0.5 if "base" in parameters else 1000.0},
        "lsoftmax": lambda: {"weight_of_plain": 0.5 if "base" in parameters else 1000.0},
        "adaface": lambda: {"mean": 3.0, "deviation": 1.7},
        "sface_quality": lambda: {"mean": 3.0, "deviation": 1.7},
        "curricularface": lambda: {"t": 0.3},
        "elasticface": lambda: {
            "margin": torch.full((BATCH,), 0.35 if given.get("kind") == "cos" else 0.5, dtype=x.dtype)
        },
        "sphereface2": lambda: {"offset": head.offset},
        "adacos": lambda: {"s": float(head.s)},
    }.get(name, dict)()
    return REFERENCES[name](x, head.weight, y, **given, **extra)


@pytest.mark.parametrize(("memory", "block_size"), [("keep", 4), ("recompute", None)])
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_loss_and_gradients_are_those_of_the_formula(
    name: str, parameters: dict[str, Any], memory: str, block_size: int | None
) -> None:
    head, x, y = make(name, **parameters, block_size=block_size, memory=memory)
    variables = [x, *head.parameters()]
    loss = head(x, y).loss
    gradients = torch.autograd.grad(loss, variables)
    right = expected(name, head, x, y, parameters)
    right_gradients = torch.autograd.grad(right, variables)

    assert abs(loss - right) < 1e-10 * max(1, abs(right))
    for got, wanted in zip(gradients, right_gradients, strict=True):
        assert wanted.abs().max() > 1e-8  # a test on gradients that vanish would say nothing
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


# What a head holds constant is no gradient that differences could find: it is switched off, where it can be.
CONSTANTS = {"adaface": {"h": 0.0}, "npcface": {"m1": 0.0}}
EXACT = sorted(set(HEADS.names()) - PAIRS - {"sface", "sface_quality", "circle", "arcneg"})


@pytest.mark.parametrize("name", EXACT)
def test_gradcheck(name: str) -> None:
    torch.manual_seed(0)
    settings = {"memory": "recompute", "block_size": 2, **CONSTANTS.get(name, {})}
    head = create_head(name, num_classes=3, embedding_size=3, init=1.0, **settings).double().eval()
    parameters = dict(head.named_parameters())
    y = torch.tensor([1, 2])

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), (x, y)).loss

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, [x, *parameters.values()], eps=1e-7, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(HEADS.names()) - PAIRS))
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
