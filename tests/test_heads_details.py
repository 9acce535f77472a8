"""The details that implementations get wrong: each test also shows that the wrong version differs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facerec.heads import create_head
from facerec.heads.margins import add_angle
from facerec.heads.mechanism.batch import Samples
from tests.heads_cases import CLASSES, batch, gradient, make
from tests.heads_reference import REFERENCES, cosines, own, picked, unit, with_target

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


def test_easy_margin_adds_the_angle_only_while_the_cosine_is_positive() -> None:
    value = add_angle(ANGLES.cos(), 0.5, easy=True)
    right = torch.where(ANGLES.cos() > 0, (ANGLES + 0.5).cos(), ANGLES.cos())
    torch.testing.assert_close(value, right, rtol=0, atol=1e-7)
    assert (value - add_angle(ANGLES.cos(), 0.5)).abs().max() > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slope_is_finite_at_the_poles(sign: float, dtype: torch.dtype) -> None:
    cosine = torch.tensor([sign], dtype=dtype, requires_grad=True)
    assert gradient(add_angle(cosine, 0.5).sum(), cosine).isfinite().all()
    naive = gradient((cosine.arccos() + 0.5).cos().sum(), cosine)
    assert not naive.isfinite().all()


def test_gradient_is_exact_and_straight_through_is_the_widespread_one() -> None:
    x, y = batch()
    exact, straight = make("arcface"), make("arcface", straight_through=True)
    assert exact(x, y).loss == straight(x, y).loss

    # The widespread version changes the cosines in place where autograd does not look.
    c = cosines(x, exact.weight)
    with torch.no_grad():
        target = add_angle(picked(c, y), 0.5)
        change = with_target(c, y, target) - c
    widespread = F.cross_entropy(64 * (c + change), y)
    torch.testing.assert_close(
        gradient(straight(x, y).loss, x), gradient(widespread, x), rtol=1e-10, atol=1e-10
    )
    right = REFERENCES["arcface"](x, exact.weight, y)
    torch.testing.assert_close(gradient(exact(x, y).loss, x), gradient(right, x), rtol=1e-9, atol=1e-9)

    # By hand, for the one factor in which they differ: sin(θ + m)/sin θ.
    difference = (gradient(exact(x, y).loss, x) - gradient(straight(x, y).loss, x)).abs().max()
    assert difference > 1e-2
    cosine = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    angle = cosine.detach().arccos()
    slope = gradient(exact.target(cosine, cosine).sum(), cosine)
    torch.testing.assert_close(slope, (angle + 0.5).sin() / angle.sin())
    torch.testing.assert_close(
        gradient(straight.target(cosine, cosine).sum(), cosine), torch.ones_like(slope)
    )


# SFace


def test_sface_holds_its_weights_constant() -> None:
    x, y = batch()
    head = make("sface", k=10.0)
    got = gradient(head(x, y).loss, x)
    c = cosines(x, head.weight)
    angle = c.clamp(-1 + 1e-12, 1 - 1e-12).arccos()

    def loss(angle: Tensor) -> Tensor:
        r_intra = torch.sigmoid(10 * (picked(angle, y) - 0.87))
        r_inter = torch.sigmoid(-10 * (angle - 1.22))
        inter = (r_inter * 64 * c * ~own(y, CLASSES)).sum(1)
        return (-r_intra * 64 * picked(c, y) + inter).mean()

    torch.testing.assert_close(got, gradient(loss(angle.detach()), x), rtol=1e-10, atol=1e-10)
    wrong = gradient(loss(angle), x)
    assert (got - wrong).abs().max() > 1


def test_sface_is_no_softmax_and_reports_its_parts() -> None:
    x, y = batch()
    head = make("sface")
    output = head(x, y)
    parts = output.statistics
    torch.testing.assert_close(output.loss.detach(), parts["intra_loss"] + parts["inter_loss"])
    c = cosines(x, head.weight).detach()
    assert float(parts["target_cosine"]) == pytest.approx(float(picked(c, y).mean()))
    others = c[~own(y, CLASSES)].mean()
    assert float(parts["other_cosine"]) == pytest.approx(float(others))

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


# Heads that look at the norm


def test_adaface_takes_the_norm_as_a_constant_and_clips_it() -> None:
    x, y = batch(length=4)
    head = make("adaface", h=1.0).eval()
    head.norm.mean.fill_(8.0)
    head.norm.deviation.fill_(3.0)
    got = gradient(head(x, y).loss, x)
    # x·∂L/∂x = 0: moving along x changes nothing when the norm is a constant …
    torch.testing.assert_close((got * x).sum(1), torch.zeros(len(x), dtype=x.dtype), rtol=0, atol=1e-10)

    # … and it is not when the gradient flows through the norm.
    c = cosines(x, head.weight)
    q = ((x.norm(dim=1) - 8) / 3.001).clip(-1, 1)
    target = (picked(c, y).arccos() - 0.4 * q).clip(1e-3, math.pi - 1e-3).cos() - (0.4 * q + 0.4)
    wrong = gradient(F.cross_entropy(64 * with_target(c, y, target), y), x)
    assert (wrong * x).sum(1).abs().max() > 0.1

    far = head(x.detach() * 1e6, y).statistics
    torch.testing.assert_close(far["quality_p50"], torch.tensor(1.0, dtype=x.dtype))


def test_adaface_margin_has_the_right_signs() -> None:
    """q = −1 is the margin of ArcFace, 0 that of CosFace, +1 a negative angle and twice the cosine margin."""
    x, y = batch()
    for mean, angle, cosine in ((1e9, 0.4, 0.0), (0.0, -0.4, 0.8)):
        head = make("adaface", h=1e9).eval()
        head.norm.mean.fill_(mean)
        c = cosines(x, head.weight)
        target = (picked(c, y).arccos() + angle).clip(1e-3, math.pi - 1e-3).cos() - cosine
        right = F.cross_entropy(64 * with_target(c, y, target), y)
        torch.testing.assert_close(head(x, y).loss, right, rtol=1e-10, atol=0)


def test_magface_lets_the_gradient_through_the_norm_in_margin_and_regulariser() -> None:
    x, y = batch(length=20)
    with torch.no_grad():
        x[0], x[1] = 0.1 * x[0], 10 * x[1]  # shorter than l_a, longer than u_a
    got = {}
    for lambda_g in (0.0, 35.0):
        head = make("magface", lambda_g=lambda_g)
        got[lambda_g] = (gradient(head(x, y).loss, x) * x).sum(1)
        wrong = REFERENCES["magface"](unit(x) * x.norm(dim=1, keepdim=True).detach(), head.weight, y)
        assert (gradient(wrong, x) * x).sum(1).abs().max() < 1e-9  # detached norms push nowhere along x
    inside = (x.norm(dim=1) > 10) & (x.norm(dim=1) < 110)
    assert inside.any()
    assert got[0.0][inside].abs().min() > 1e-4
    length = x.norm(dim=1)[inside]
    regulariser = 35 * (-1 / length + length / 110**2) / len(x)
    torch.testing.assert_close((got[35.0] - got[0.0])[inside], regulariser)
    assert got[35.0][~inside].abs().max() < 1e-9


# Hard negatives


def test_curricularface_lets_the_gradient_through_both_factors_of_hard_negatives() -> None:
    x, y = batch()
    head = make("curricularface").eval()
    head.t.fill_(0.3)
    got = gradient(head(x, y).loss, x)
    torch.testing.assert_close(got, gradient(REFERENCES["curricularface"](x, head.weight, y, t=0.3), x))
    c = cosines(x, head.weight)
    hard = c > (picked(c, y).arccos() + 0.5).cos()[:, None]
    weighted = torch.where(hard, c * (0.3 + c.detach()), c)
    wrong = F.cross_entropy(64 * with_target(weighted, y, add_angle(picked(c, y), 0.5)), y)
    assert (gradient(wrong, x) - got).abs().max() > 1e-2


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
