"""Margins that follow the length of the embedding: AdaFace and MagFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facerec.errors import require
from facerec.heads.base import HEADS, MarginHead, cross_entropy
from facerec.heads.margins import add_angle, sine
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.quality import RunningNorm, quality_statistics
from facerec.heads.mechanism.ranges import AngularMargin, Momentum, NotNegative, Positive


@HEADS.register("adaface")
class AdaFace(MarginHead):
    """Target cos(θ_y − m·q) − (m·q + m): the better the image, the more the margin weighs hard samples.

    q = clip(h·(‖x‖ − μ)/(σ + 1e-3), −1, 1) without gradient, ‖x‖ clipped to [0.001, 100], μ and σ its running
    mean and deviation. θ_y − m·q is clipped into [1e-3, π − 1e-3]. Kim et al. 2022, CVPR, "AdaFace", arXiv
    2204.00964.

    Args:
        m: margin.
        h: speed at which q follows the norm; 0.333 leaves about two thirds of a normal batch in ±h.
        ema: momentum of μ and σ.
    """

    m: AngularMargin = 0.4
    h: NotNegative = 0.333
    ema: Momentum = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norm = RunningNorm(self.ema)

    def quality(self, norm_B: Tensor) -> Tensor:
        """Return q of embeddings by their lengths; in training mode μ and σ move."""
        return (self.h * self.norm(norm_B.detach().clamp(0.001, 100), epsilon=1e-3)).clamp(-1, 1)

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return adaptive_margin(sums.target_B, self.m * self.quality(samples.norm_B), self.m)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        quality_B = self.quality(samples.norm_B)
        target_B = adaptive_margin(sums.target_B, self.m * quality_B, self.m)
        return cross_entropy(self.s * target_B, sums.others_B), quality_statistics(quality_B)


def adaptive_margin(cosine: Tensor, shift: Tensor, m: float) -> Tensor:
    """Return cos(θ − shift) − (shift + m), with θ − shift clipped into [1e-3, π − 1e-3]."""
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
        l_a: least length.
        u_a: largest length, > l_a.
        l_m: margin at l_a.
        u_m: margin at u_a, l_m or more.
        lambda_g: weight of g.
        easy_margin: add the margin only while θ < π/2, as the released code does.
    """

    l_a: Positive = 10.0
    u_a: float = 110.0
    l_m: AngularMargin = 0.45
    u_m: AngularMargin = 0.8
    lambda_g: NotNegative = 35.0
    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.u_a > self.l_a, "head.u_a", self.u_a, f"must be greater than l_a={self.l_a:g}")
        require(self.u_m >= self.l_m, "head.u_m", self.u_m, f"must be at least l_m={self.l_m:g}")

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        length_B = norm_B.clamp(self.l_a, self.u_a)
        m_B = (self.u_m - self.l_m) / (self.u_a - self.l_a) * (length_B - self.l_a) + self.l_m
        return add_angle(cosine_B, m_B, easy=self.easy_margin)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B, _ = super().loss(sums, samples)
        length_B = samples.norm_B.clamp(self.l_a, self.u_a)
        regulariser_B = 1 / length_B + length_B / self.u_a**2
        statistics = quality_statistics(samples.norm_B) | {"magnitude_loss": regulariser_B.mean()}
        return loss_B + self.lambda_g * regulariser_B, statistics
