"""SphereFace and its likes in the details: ψ, annealing, the released layer's gradient, SphereFace2."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facerec.heads.sphereface import psi
from tests.heads_cases import CLASSES, SIZE, batch, gradient, make
from tests.heads_reference import REFERENCES, cosines, own, picked, unit, with_target

ANGLES = torch.linspace(0, math.pi, 20001, dtype=torch.float64)


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


# SphereFace2


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
