"""Heads that become one another at the ends of their parameters; the walk over the classes; a library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from facerec.heads.base import ClassHead, Head
from facerec.heads.mechanism.class_sums import Walk, class_sums
from facerec.heads.mechanism.terms import Elementwise, Scaled, Term
from tests.heads_cases import CLASSES, SIZE, batch, make


def made(name: str, **parameters: Any) -> Head:
    return make(name, **parameters).eval()


def results(head: Head, x: Tensor, y: Tensor) -> list[Tensor]:
    """The loss and its gradients to embeddings and weights."""
    loss = head(x, y).loss
    gradients = torch.autograd.grad(loss, [x, head.weight])
    return [loss, gradients[0], gradients[1].flatten()]


LIMITS: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("cosface", {"m": 0.0}), ("normface", {})),
    (("arcface", {"m": 0.0}), ("normface", {})),
    (("arcface", {"m": 0.0, "easy_margin": True}), ("normface", {})),
    (("combined", {"m1": 1.0, "m2": 0.0, "m3": 0.0}), ("normface", {})),
    (("combined", {"m1": 1.0, "m2": 0.4, "m3": 0.0}), ("arcface", {"m": 0.4})),
    (("combined", {"m1": 1.0, "m2": 0.0, "m3": 0.4}), ("cosface", {"m": 0.4})),
    (("sphereface", {"m": 1, "base": 1e3}), ("sphereface", {"m": 1, "base": 0.0})),
    (("lsoftmax", {"m": 1, "base": 1e3}), ("lsoftmax", {"m": 1, "base": 0.0})),
    (("adaface", {"h": 0.0, "m": 0.35}), ("cosface", {"m": 0.35})),
    (("magface", {"l_m": 0.45, "u_m": 0.45, "lambda_g": 0.0}), ("arcface", {"m": 0.45})),
    (("elasticface", {"sigma": 0.0}), ("arcface", {})),
    (("elasticface", {"sigma": 0.0, "kind": "cos"}), ("cosface", {})),
    (("mvsoftmax", {"t": 0.0, "s": 64.0}), ("cosface", {})),
    (("mvsoftmax", {"t": 0.0, "s": 64.0, "kind": "arc", "m": 0.5}), ("arcface", {})),
    (("arcneg", {"alpha": 1.0, "sigma": 1e12}), ("arcface", {})),
    (("npcface", {"m1": 0.0, "t": 1.0, "a": 0.0, "easy_margin": False}), ("arcface", {"m": 0.4})),
    (("npcface", {"m1": 0.0, "t": 1.0, "a": 0.0}), ("arcface", {"m": 0.4, "easy_margin": True})),
    (("center", {"lambda_c": 0.0}), ("softmax", {})),
    (("subcenter", {"k": 1}), ("arcface", {})),
]


@pytest.mark.parametrize(("one", "other"), LIMITS, ids=[f"{a[0]}-{b[0]}" for a, b in LIMITS])
def test_heads_meet_in_their_limits(one: tuple[str, dict], other: tuple[str, dict]) -> None:
    x, y = batch(8, length=2.0)
    left, right = (results(made(name, **parameters), x, y) for name, parameters in (one, other))
    for got, wanted in zip(left, right, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["sphereface", "lsoftmax"])
def test_multiplicative_margin_of_one_is_a_plain_softmax(name: str) -> None:
    x, y = batch(8, length=2.0)
    head = made(name, m=1)
    weight = head.weight if name == "lsoftmax" else torch.nn.functional.normalize(head.weight)
    torch.testing.assert_close(head(x, y).loss, torch.nn.functional.cross_entropy(x @ weight.t(), y))


def test_perfect_quality_makes_sface_quality_sface() -> None:
    x, y = batch(8, length=2.0)
    head = made("sface_quality", h=1e6)
    head.norm.mean.fill_(0.0)  # every norm is far above the mean
    for got, wanted in zip(results(head, x, y), results(made("sface"), x, y), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_any_elementwise_function_can_be_a_term() -> None:
    """The walk itself, with a function no head has, with a bias, extra sums and the weights' norms."""

    class Squares(Elementwise):
        def extra(self, product_KB: Tensor) -> tuple[Tensor, ...]:
            return product_KB.abs(), torch.ones_like(product_KB)

    x, y = batch(8, length=2.0)
    weight = torch.randn(CLASSES, SIZE, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(CLASSES, dtype=torch.float64, requires_grad=True)
    walk = Walk(normalise=False, block_size=4)
    sums = class_sums(x, weight, y, lambda target_B: Squares(lambda p: p**2 * target_B, "sum"), bias, walk)
    product = x @ weight.t() + bias
    own = torch.nn.functional.one_hot(y, CLASSES).bool()
    target = product[own]
    others = (product**2 * target.detach()[:, None] * ~own).sum(1)
    torch.testing.assert_close(sums.target_B, target)
    torch.testing.assert_close(sums.others_B, others)
    torch.testing.assert_close(sums.target_norm_B, weight.norm(dim=1)[y])
    torch.testing.assert_close(sums.extra[0], (product.abs() * ~own).sum(1))
    torch.testing.assert_close(sums.extra[1], torch.full((8,), CLASSES - 1.0, dtype=torch.float64))

    got = (sums.target_B + 2 * sums.others_B + 3 * sums.target_norm_B).square().sum()
    wanted = (target + 2 * others + 3 * weight.norm(dim=1)[y]).square().sum()
    variables = [x, weight, bias]
    both = (torch.autograd.grad(sum_, variables) for sum_ in (got, wanted))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_term_that_returns_its_argument_does_not_spoil_the_products() -> None:
    x, y = batch(8, length=2.0)
    weight = torch.randn(CLASSES, SIZE, dtype=torch.float64)

    def result(term: Term) -> Tensor:
        return class_sums(x, weight, y, lambda target_B: term, None, Walk(block_size=4)).others_B

    torch.testing.assert_close(result(Elementwise(lambda p: p)), result(Scaled(1.0)))


def test_sub_centres_go_with_unit_weights_only() -> None:
    x, y = batch(8, length=2.0)
    weight = torch.randn(CLASSES, 2, SIZE, dtype=torch.float64)
    with pytest.raises(ValueError, match="normalised weights"):
        class_sums(x, weight, y, lambda target_B: Scaled(), None, Walk(normalise=False))


LIBRARY = [
    ("normface", {"s": 20.0}, "NormalizedSoftmaxLoss", {"temperature": 0.05}),
    ("cosface", {"s": 30.0, "m": 0.4}, "CosFaceLoss", {"scale": 30.0, "margin": 0.4}),
    ("arcface", {"m": 0.5}, "ArcFaceLoss", {"margin": torch.rad2deg(torch.tensor(0.5)).item()}),
    ("subcenter", {"m": 0.5}, "SubCenterArcFaceLoss", {"margin": torch.rad2deg(torch.tensor(0.5)).item()}),
    ("sphereface", {"m": 3, "base": 0.0, "lambda_min": 0.0}, "SphereFaceLoss", {"margin": 3}),
    ("sphereface", {"m": 4, "base": 0.0, "lambda_min": 0.0}, "SphereFaceLoss", {"margin": 4}),
    ("lsoftmax", {"m": 4, "base": 0.0, "lambda_min": 0.0}, "LargeMarginSoftmaxLoss", {"margin": 4}),
]


@pytest.mark.parametrize(("name", "parameters", "theirs", "their_parameters"), LIBRARY)
def test_agrees_with_pytorch_metric_learning(
    name: str, parameters: dict[str, Any], theirs: str, their_parameters: dict[str, Any]
) -> None:
    """Its margins are in degrees, and its SphereFace anneals nothing."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x, y = batch(64, length=2.0)
    if name == "normface":  # its embeddings are whatever they are
        x = torch.nn.functional.normalize(x).detach().requires_grad_()
    head = made(name, **parameters)
    assert isinstance(head, ClassHead)
    their_head = getattr(losses, theirs)(
        num_classes=CLASSES, embedding_size=SIZE, **their_parameters
    ).double()
    their_head.W.data = head.weight.detach().flatten(0, -2).t().clone()
    loss, gradient, _ = results(head, x, y)
    their_loss = their_head(x, y)
    assert float(loss.detach()) == pytest.approx(float(their_loss.detach()), rel=1e-7)
    torch.testing.assert_close(gradient, torch.autograd.grad(their_loss, x)[0], rtol=1e-5, atol=1e-7)
