"""Margins that follow the length of the embedding: AdaFace and MagFace."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from facerec.errors import require
from facerec.heads.base import HEADS, MarginHead, MarginOptions, Samples, cross_entropy, sine
from facerec.heads.margins import add_angle, require_angle
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.quality import RunningNorm, describe_quality


@HEADS.register("adaface")
class AdaFace(MarginHead):
    """Target cos(θ_y − m·q) − (m·q + m): the better the image, the more the margin weighs hard samples.

    q = clip(h·(‖x‖ − μ)/(σ + 1e-3), −1, 1) without gradient, ‖x‖ clipped to [0.001, 100], μ and σ its running
    mean and deviation. θ_y − m·q is clipped into [1e-3, π − 1e-3]. Kim et al. 2022, CVPR, "AdaFace", arXiv
    2204.00964.

    Args:
        m: margin, in [0, π/2]; 0.4.
        h: how fast q follows the norm, ≥ 0; 0.333 leaves about two thirds of a normal batch in ±h.
        ema: momentum of μ and σ, in (0, 1]; 0.01.
        options: see `MarginOptions`.
    """

    def __init__(
        self, *, m: float = 0.4, h: float = 0.333, ema: float = 0.01, **options: Unpack[MarginOptions]
    ) -> None:
        super().__init__(**options)
        require_angle("m", m)
        require(h >= 0, "head.h", h, "must be 0 or more")
        self.m, self.h = m, h
        self.norm = RunningNorm(ema)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        norm_B = samples.norm_B.detach().clamp(0.001, 100)
        quality_B = (self.h * self.norm(norm_B, epsilon=1e-3)).clamp(-1, 1)
        target_B = adaptive_margin(sums.target_B, self.m * quality_B, self.m)
        return cross_entropy(self.s * target_B, sums.others_B), describe_quality(quality_B)


def adaptive_margin(cosine: Tensor, shift: Tensor, m: float) -> Tensor:
    """cos(θ − shift) − (shift + m), with θ − shift clipped into [1e-3, π − 1e-3]."""
    # atan2 keeps its slope finite at θ = 0 and π, where that of arccos is infinite.
    angle = torch.atan2(sine(cosine), cosine) - shift
    return angle.clamp(1e-3, math.pi - 1e-3).cos() - (shift + m)


@HEADS.register("magface")
class MagFace(MarginHead):
    """Target cos(θ_y + m(a)), and λ_g·g(a) added to the loss, a = ‖x‖ clipped to [l_a, u_a].

    m(a) = (u_m − l_m)/(u_a − l_a)·(a − l_a) + l_m and g(a) = 1/a + a/u_a²; the gradient flows through a in
    both, so that samples which are easy to recognise grow. Meng et al. 2021, CVPR, "MagFace", arXiv
    2103.06627.

    Args:
        l_a: least length, > 0; 10.
        u_a: largest length, > l_a; 110.
        l_m: margin at l_a (radians, in [0, π/2]); 0.45.
        u_m: margin at u_a, from l_m to π/2; 0.8.
        lambda_g: weight of g, ≥ 0; 35.
        easy_margin: add the margin only while θ < π/2, as the released code does.
        options: see `MarginOptions`.
    """

    def __init__(
        self,
        *,
        l_a: float = 10.0,
        u_a: float = 110.0,
        l_m: float = 0.45,
        u_m: float = 0.8,
        lambda_g: float = 35.0,
        easy_margin: bool = False,
        **options: Unpack[MarginOptions],
    ) -> None:
        super().__init__(**options)
        require(l_a > 0, "head.l_a", l_a, "a length must be greater than 0")
        require(u_a > l_a, "head.u_a", u_a, f"must be greater than l_a={l_a:g}")
        require_angle("l_m", l_m)
        require_angle("u_m", u_m)
        require(u_m >= l_m, "head.u_m", u_m, f"must be at least l_m={l_m:g}")
        require(lambda_g >= 0, "head.lambda_g", lambda_g, "must be 0 or more")
        self.l_a, self.u_a, self.l_m, self.u_m, self.lambda_g = l_a, u_a, l_m, u_m, lambda_g
        self.easy_margin = easy_margin

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        length_B = norm_B.clamp(self.l_a, self.u_a)
        m_B = (self.u_m - self.l_m) / (self.u_a - self.l_a) * (length_B - self.l_a) + self.l_m
        return add_angle(cosine_B, m_B, easy=self.easy_margin)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B, _ = super().loss(sums, samples)
        length_B = samples.norm_B.clamp(self.l_a, self.u_a)
        regulariser_B = 1 / length_B + length_B / self.u_a**2
        statistics = describe_quality(samples.norm_B) | {"magnitude_loss": regulariser_B.mean()}
        return loss_B + self.lambda_g * regulariser_B, statistics
