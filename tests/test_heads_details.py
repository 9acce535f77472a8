"""The details that implementations get wrong: each test also shows that the wrong version differs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facerec.heads import create_head
from facerec.heads.base import Head
from facerec.heads.margins import add_angle
from facerec.heads.mechanism.batch import Samples
from facerec.heads.sphereface import psi
from tests.heads_reference import REFERENCES, cosines, own, picked, unit, with_target

CLASSES, SIZE = 7, 5
ANGLES = torch.linspace(0, math.pi, 20001, dtype=torch.float64)


def make(name: str, **parameters: Any) -> Head:
    torch.manual_seed(0)
    head = create_head(name, num_classes=CLASSES, embedding_size=SIZE, **parameters).double()
    torch.nn.init.normal_(head.weight)
    return head


def batch(size: int = 12, length: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = length * torch.randn(size, SIZE, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(CLASSES, (size,), generator=generator)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x, retain_graph=True)[0]


# ψ


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_psi_falls_without_a_jump_from_1_to_1_minus_2m(m: int) -> None:
    value = psi(ANGLES.cos(), m)
    assert (value.diff() <= 1e-12).all()
    assert value.diff().abs().max() < 2e-3
    assert value[0] == 1
    assert float(value[-1]) == pytest.approx(1 - 2 * m)

    naive = (m * ANGLES).cos()  # cos(mθ) alone rises again
    assert m == 1 or naive.diff().max() > 0


@pytest.mark.parametrize("m", [2, 3, 4])
def test_psi_at_pi_is_in_the_last_piece(m: int) -> None:
    """With k = m at θ = π the value is the same but the slope has the wrong sign."""
    cosine = torch.tensor([-1.0, -1.0 - 1e-7], dtype=torch.float64, requires_grad=True)
    slope = gradient(psi(cosine, m).sum(), cosine)
    assert slope.tolist() == pytest.approx([m**2, m**2], rel=1e-5)  # it rises with the cosine
    k = math.floor(math.acos(-1.0) * m / math.pi)
    wrong_slope = (-1) ** k * m**2 * (-1) ** (m - 1)  # T_m'(−1) = m²·(−1)^(m−1)
    assert k == m
    assert wrong_slope == -(m**2)


# Annealing


def test_annealing_counts_steps_of_the_optimizer_not_forward_passes() -> None:
    head = make("sphereface", base=1000.0, gamma=0.12, power=1.0, lambda_min=5.0)
    x, y = batch()
    for _ in range(3):  # three micro-batches of one step
        assert float(head(x, y).statistics["lambda"]) == 1000.0
    head.after_step()
    assert float(head(x, y).statistics["lambda"]) == pytest.approx(1000 / 1.12)
    for _ in range(9):
        head.after_step()
    assert float(head(x, y).statistics["lambda"]) == pytest.approx(1000 / (1 + 0.12 * 10))
    assert int(head.iteration) == 10

    resumed = make("sphereface")
    resumed.load_state_dict(head.state_dict())
    assert resumed(x, y).loss == head(x, y).loss
    assert make("sphereface")(x, y).loss != head(x, y).loss  # a counter outside the checkpoint starts again


def test_annealing_ends_at_its_least_weight() -> None:
    head = make("lsoftmax")
    head.iteration.fill_(10**6)
    x, y = batch()
    assert float(head(x, y).statistics["lambda"]) == 5.0
    right = REFERENCES["lsoftmax"](x, head.weight, y, weight_of_plain=5)
    torch.testing.assert_close(head(x, y).loss, right, rtol=1e-12, atol=0)


# The gradient of the released A-Softmax layer


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_normalize_gradient_rescales_the_two_coefficients_to_unit_length(m: int) -> None:
    plain = 2.0
    x, y = batch(length=3)
    head = make("sphereface", m=m, base=0.0, lambda_min=plain, normalize_gradient=True)
    output = head(x, y)
    got = gradient(output.loss, x)

    # By hand: ∂(‖x‖ψ)/∂x = coeff_w·ŵ + coeff_x·x.
    with torch.no_grad():
        w, length, c = unit(head.weight), x.norm(dim=1), cosines(x, head.weight)
        angle = picked(c, y).arccos()
        k = (angle * m / math.pi).floor()
        value = (-1) ** k * (m * angle).cos() - 2 * k
        slope = (-1) ** k * m * (m * angle).sin() / angle.sin()
        coeff_w, coeff_x = slope, (value - picked(c, y) * slope) / length
        joint = (coeff_w**2 + coeff_x**2).sqrt()
        target = length * (plain * picked(c, y) + value) / (1 + plain)
        error = with_target(length[:, None] * c, y, target).softmax(1) - own(y, CLASSES).double()

        def by_hand(joint: Tensor | float) -> Tensor:
            margin = (coeff_w / joint)[:, None] * w[y] + (coeff_x / joint)[:, None] * x
            of_target = (plain * w[y] + margin) / (1 + plain)
            of_others = (error * ~own(y, CLASSES)) @ w
            return (of_others + picked(error, y)[:, None] * of_target) / len(x)

    torch.testing.assert_close(got, by_hand(joint), rtol=1e-9, atol=1e-10)
    true = make("sphereface", m=m, base=0.0, lambda_min=plain)(x, y)
    torch.testing.assert_close(gradient(true.loss, x), by_hand(1.0), rtol=1e-9, atol=1e-10)
    assert output.loss == true.loss
    assert m == 1 or (by_hand(joint) - by_hand(1.0)).abs().max() > 1e-3


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


def test_sphereface2_bias_starts_where_its_gradient_is_zero() -> None:
    head = make("sphereface2")
    flat = torch.zeros(4, SIZE, dtype=torch.float64)  # a direction-less embedding: all cosines are 0
    loss = head(flat, torch.tensor([0, 1, 2, 3])).loss
    (slope,) = torch.autograd.grad(loss, head.offset)
    assert abs(float(slope)) < 1e-8
    with torch.no_grad():
        head.offset += 0.5
    (slope,) = torch.autograd.grad(head(flat, torch.tensor([0, 1, 2, 3])).loss, head.offset)
    assert float(slope) > 1e-3


def test_sphereface2_straight_through_changes_the_gradient_only() -> None:
    x, y = batch()
    exact, straight = make("sphereface2"), make("sphereface2", straight_through=True)
    assert exact(x, y).loss == straight(x, y).loss
    c = cosines(x, straight.weight)
    g = 2 * ((c + 1) / 2) ** 3 - 1
    g = c + (g - c).detach()
    label = own(y, CLASSES).double()
    weight = 0.7 * label + 0.3 * (1 - label)
    logit = 40 * (g - 0.4 * (2 * label - 1)) + straight.offset
    loss = F.binary_cross_entropy_with_logits(logit, label, weight, reduction="none").sum(1).mean() / 40
    torch.testing.assert_close(gradient(straight(x, y).loss, x), gradient(loss, x), rtol=1e-9, atol=1e-10)
    assert (gradient(straight(x, y).loss, x) - gradient(exact(x, y).loss, x)).abs().max() > 1e-4
