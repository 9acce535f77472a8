"""Margins on the target's cosine: CosFace, ArcFace and their combination."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from facerec.distributed import all_reduce_mean
from facerec.heads.base import HEADS, MarginHead
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.ranges import AngularMargin, CosineMargin, NotNegative, Positive


@HEADS.register("cosface")
class CosFace(MarginHead):
    """Target cos θ_y − m: an additive cosine margin. Wang et al. 2018 (CosFace, AM-Softmax).

    Args:
        m: margin; 0.35 here, 0.40 is common for CASIA (with s=30). m=0 is `normface`.
    """

    m: CosineMargin = 0.35

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        return cosine_B - self.m


@HEADS.register("arcface")
class ArcFace(MarginHead):
    """Target cos(θ_y + m): an additive angular margin. Deng et al. 2019, CVPR, equation 3.

    Args:
        m: margin in radians; m=0 is `normface`.
        easy_margin: past θ = π/2 leave the cosine as it is; otherwise continue past θ = π − m with
            cos θ − m·sin m, which keeps falling.
        straight_through: back-propagate derivative 1 instead of sin(θ+m)/sin θ, as a widespread
            implementation does that changes the cosines in place; to reproduce its runs.
        focal: γ of face.evoLVe's focal loss: the mean loss L of a batch becomes (1 − e^{−L})^γ·L; 0: L.
    """

    m: AngularMargin = 0.5
    easy_margin: bool = False
    straight_through: bool = False
    focal: NotNegative = 0.0

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        margin_B = add_angle(cosine_B, self.m, easy=self.easy_margin)
        return cosine_B + (margin_B - cosine_B).detach() if self.straight_through else margin_B

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B, statistics = super().loss(sums, samples)
        if self.focal:
            # Of the mean over all ranks, whose gradient each sample gets: value and slope at that mean.
            mean = all_reduce_mean(loss_B.detach())
            wrong = -torch.expm1(-mean)
            value = wrong**self.focal * mean
            slope = wrong**self.focal + self.focal * wrong ** (self.focal - 1) * (1 - wrong) * mean
            loss_B = value + slope * (loss_B - mean)
        return loss_B, statistics


@HEADS.register("combined")
class Combined(MarginHead):
    """Target cos(m1·θ_y + m2) − m3. Deng et al. 2019, CVPR, equation 4.

    Past m1·θ + m2 = π a plain cosine would rise again. With m1 = 1 the target continues as `arcface` does;
    otherwise as ψ of SphereFace, (−1)^k·cos(m1·θ + m2) − 2k, which falls without a jump.

    Args:
        m1: angular factor; m1=1, m3=0 is `arcface`, m1=1, m2=0 is `cosface`.
        m2: angular margin in radians.
        m3: cosine margin.
    """

    m1: Positive = 1.0
    m2: AngularMargin = 0.3
    m3: CosineMargin = 0.2

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        if self.m1 == 1:
            return add_angle(cosine_B, self.m2) - self.m3
        # atan2 keeps its slope finite at θ = 0 and π, where that of arccos is infinite.
        angle_B = self.m1 * torch.atan2(sine(cosine_B), cosine_B) + self.m2
        turn_B = (angle_B.detach() / math.pi).floor()
        sign_B = 1 - 2 * (turn_B % 2)
        return sign_B * angle_B.cos() - 2 * turn_B - self.m3


def add_angle(cosine: Tensor, m: float | Tensor, easy: bool = False) -> Tensor:
    """Return cos(θ + m) from cos θ, exact while θ + m ≤ π, and decreasing beyond (see `ArcFace`).

    Args:
        cosine: cos θ in [-1, 1], any shape.
        m: angle in radians, in [0, π/2]; a number, or a tensor of the same shape.
        easy: instead of the decreasing continuation, add the angle only while cos θ > 0.
    """
    cos_m, sin_m = _cos_sin(m)
    margin = rotate(cosine, m)
    if easy:
        return torch.where(cosine > 0, margin, cosine)
    return torch.where(cosine > -cos_m, margin, cosine - m * sin_m)


def rotate(cosine: Tensor, m: float | Tensor) -> Tensor:
    """Return cos(θ + m) from cos θ, whatever θ + m is; its slope is finite at θ = 0 and π."""
    cos_m, sin_m = _cos_sin(m)
    return cosine * cos_m - sine(cosine) * sin_m


def sine(cosine: Tensor) -> Tensor:
    """Return √(1−c²), its slope kept finite at |c| = 1, where the exact one is infinite."""
    return (1 - cosine * cosine).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()


def _cos_sin(m: Any) -> tuple[Any, Any]:
    return (m.cos(), m.sin()) if isinstance(m, Tensor) else (math.cos(m), math.sin(m))
