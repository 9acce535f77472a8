"""Details of single heads beyond their formulas, which test_heads_exact holds all of them against."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from facerec.heads import create_head
from facerec.heads.margins import add_angle
from facerec.heads.mechanism.batch import Samples
from tests.heads_cases import CLASSES, batch, gradient, make
from tests.heads_reference import REFERENCES, cosines, own, picked, with_target

ANGLES = torch.linspace(0, math.pi, 20001, dtype=torch.float64)


# ArcFace


def test_arcface_keeps_falling_past_pi_minus_m() -> None:
    m = 0.5
    value = add_angle(ANGLES.cos(), m)
    assert (value.diff() <= 0).all()
    before = math.pi - m > ANGLES
    torch.testing.assert_close(value[before], (ANGLES[before] + m).cos(), rtol=0, atol=1e-7)
    beyond = ANGLES[~before][1:]
    torch.testing.assert_close(value[~before][1:], beyond.cos() - m * math.sin(m), rtol=0, atol=1e-12)

    naive = (ANGLES + m).cos()
    assert naive.diff().max() > 0  # rises again near π


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slope_is_finite_at_the_poles(sign: float, dtype: torch.dtype) -> None:
    cosine = torch.tensor([sign], dtype=dtype, requires_grad=True)
    assert gradient(add_angle(cosine, 0.5).sum(), cosine).isfinite().all()
    naive = gradient((cosine.arccos() + 0.5).cos().sum(), cosine)
    assert not naive.isfinite().all()


def test_straight_through_is_the_widespread_gradient_and_not_the_exact_one() -> None:
    x, y = batch()
    exact, straight = make("arcface"), make("arcface", straight_through=True)
    assert exact(x, y).loss == straight(x, y).loss

    # The widespread version changes the cosines in place where autograd does not look.
    c = cosines(x, exact.weight)
    with torch.no_grad():
        change = with_target(c, y, add_angle(picked(c, y), 0.5)) - c
    widespread = gradient(F.cross_entropy(64 * (c + change), y), x)
    torch.testing.assert_close(gradient(straight(x, y).loss, x), widespread, rtol=1e-10, atol=1e-10)
    assert (gradient(exact(x, y).loss, x) - widespread).abs().max() > 1e-2


# SFace


def test_sface_is_no_softmax_and_reports_its_parts() -> None:
    x, y = batch()
    head = make("sface")
    output = head(x, y)
    parts = output.statistics
    torch.testing.assert_close(output.loss.detach(), parts["intra_loss"] + parts["inter_loss"])

    # The gradient to one class does not depend on the others, as it would in a softmax.
    for name, free in (("sface", True), ("normface", False)):
        head = make(name)
        before = gradient(head(x, y).loss, head.weight)[0]
        with torch.no_grad():
            head.weight[1:] = -head.weight[1:]
        assert torch.equal(gradient(head(x, y).loss, head.weight)[0], before) is free


def test_sface_starts_as_its_authors_do() -> None:
    torch.manual_seed(0)
    weight = create_head("sface", num_classes=2000, embedding_size=64).weight.detach()
    assert float(weight.std()) == pytest.approx(2 * math.sqrt(2 / 2000), rel=0.02)
    weight = create_head("arcface", num_classes=2000, embedding_size=64, init="xavier").weight.detach()
    assert float(weight.abs().max()) == pytest.approx(math.sqrt(6 / 2064), rel=0.01)
    weight = create_head("arcface", num_classes=2000, embedding_size=64, init=0.5).weight.detach()
    assert float(weight.std()) == pytest.approx(0.5, rel=0.02)
    weight = create_head("arcface", num_classes=2000, embedding_size=64, init="unit").weight.detach()
    assert weight.norm(dim=1) == pytest.approx(torch.ones(2000))


def test_a_focal_loss_is_that_of_the_mean_of_the_batch() -> None:
    x, y = batch(6)
    plain, focal = make("arcface"), make("arcface", focal=2.0)
    focal.weight.data.copy_(plain.weight)
    mean = plain(x, y).loss
    wanted = (1 - torch.exp(-mean)) ** 2 * mean
    assert focal(x, y).loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.allclose(gradient(focal(x, y).loss, x), gradient(wanted, x), rtol=1e-9)


def test_sface_quality_lets_go_of_poor_hard_samples_only() -> None:
    head = make("sface_quality", h=1.0).eval()
    head.norm.mean.fill_(10.0)
    head.norm.deviation.fill_(1.0)
    angle = torch.tensor([1.0, 1.0, 1.6, 1.6], dtype=torch.float64)
    length = torch.tensor([5.0, 20.0, 5.0, 20.0], dtype=torch.float64)
    samples = batch(4)[0].detach(), batch(4)[1], length
    pull, statistics = head.pull(angle, Samples(*samples))
    torch.testing.assert_close(pull, torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=pull.dtype), rtol=0, atol=1e-4)
    assert float(statistics["quality_mean"]) == 0.5


# Hard negatives


def test_curricularface_moves_t_before_it_uses_it() -> None:
    x, y = batch()
    head = make("curricularface")
    output = head(x, y)
    mean = picked(cosines(x, head.weight), y).mean()
    torch.testing.assert_close(output.statistics["t"], 0.01 * mean.detach())
    right = REFERENCES["curricularface"](x, head.weight, y, t=0.01 * mean.detach())
    torch.testing.assert_close(output.loss, right, rtol=1e-12, atol=0)
    assert output.loss != REFERENCES["curricularface"](x, head.weight, y, t=0.0)


def test_elasticface_plus_gives_larger_margins_to_farther_samples() -> None:
    head = make("elasticface", plus=True, sigma=0.1)
    cosine = torch.randn(50, dtype=torch.float64).tanh()
    torch.manual_seed(4)
    margin = head.margins(cosine)
    assert (margin[cosine.argsort()].diff() <= 0).all()

    # Indexing the sorted margins with the sorting order is the inverse of handing them out.
    wrong = margin.sort().values[cosine.argsort(descending=True)]
    assert not (wrong[cosine.argsort()].diff() <= 0).all()
    torch.manual_seed(4)
    torch.testing.assert_close(head.margins(cosine), margin, rtol=0, atol=0)


def test_elasticface_draws_a_margin_per_sample_in_training_and_none_in_evaluation() -> None:
    head = make("elasticface", sigma=0.1)
    cosine = torch.zeros(20000, dtype=torch.float64)
    margin = head.margins(cosine)
    assert float(margin.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(margin.std()) == pytest.approx(0.1, rel=0.03)
    head.eval()
    assert (head.margins(cosine) == 0.5).all()
    assert make("elasticface", kind="cos").m == 0.35


# Center loss


def test_centres_move_by_the_published_rule_in_training_only() -> None:
    x, y = batch()
    y[:3] = 2
    head = make("center", alpha=0.5)
    head.centre_CD.normal_(generator=torch.Generator().manual_seed(0))
    before = head.centre_CD.clone()
    loss = head(x, y).loss
    moved = before.clone()
    for j in range(CLASSES):
        mine = x.detach()[y == j]
        moved[j] -= 0.5 * (before[j] - mine).sum(0) / (1 + len(mine))
    torch.testing.assert_close(head.centre_CD, moved)
    mean = torch.stack([x.detach()[y == j].mean(0) if (y == j).any() else before[j] for j in range(CLASSES)])
    assert (head.centre_CD - (before + 0.5 * (mean - before))).abs().max() > 0.01  # not a plain mean

    loss.backward()  # the loss was that of the centres before they moved
    torch.testing.assert_close(loss, REFERENCES["center"](x, head.weight, y, head.bias, before))
    assert "centre_CD" not in dict(head.named_parameters())
    head.eval()(x, y)
    torch.testing.assert_close(head.centre_CD, moved)


# AdaCos


def test_adacos_scale_follows_its_formula() -> None:
    x, y = batch()
    head = make("adacos")
    start = math.sqrt(2) * math.log(CLASSES - 1)
    assert float(head.s) == pytest.approx(start)
    c = cosines(x, head.weight).detach()
    mean = ((start * c).exp() * ~own(y, CLASSES)).sum(1).mean()
    median = picked(c, y).arccos().median()
    s = mean.log() / median.clamp(max=math.pi / 4).cos()
    output = head(x, y)
    torch.testing.assert_close(output.statistics["s"], s, rtol=1e-6, atol=0)
    torch.testing.assert_close(output.loss, REFERENCES["adacos"](x, head.weight, y, s=float(head.s)))

    fixed = make("adacos", dynamic=False)
    fixed(x, y)
    assert float(fixed.s) == pytest.approx(start)
    assert not head.s.requires_grad
