"""Margins on the target's cosine: CosFace, ArcFace and their combination."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from facerec.errors import require
from facerec.heads.base import HEADS, HeadOptions, MarginHead, sine


@HEADS.register("cosface")
class CosFace(MarginHead):
    """Target cos θ_y − m: an additive cosine margin. Wang et al. 2018 (CosFace, AM-Softmax).

    Args:
        s: scale, > 0; 64 here, 30 is common for CASIA.
        m: margin in [0, 2); 0.35 here, 0.40 is common for CASIA. m=0 is `normface`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        s: float = 64.0,
        m: float = 0.35,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_classes, embedding_size, s=s, **options)
        require(0 <= m < 2, "head.m", m, "a cosine margin must be from 0 to below 2")
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        return cosine_B - self.m


@HEADS.register("arcface")
class ArcFace(MarginHead):
    """Target cos(θ_y + m): an additive angular margin. Deng et al. 2019, CVPR, equation 3.

    Args:
        s: scale, > 0.
        m: margin in radians, in [0, π/2]; m=0 is `normface`.
        easy_margin: past θ = π/2 leave the cosine as it is; otherwise continue past θ = π − m with
            cos θ − m·sin m, which keeps falling.
        straight_through: back-propagate derivative 1 instead of sin(θ+m)/sin θ, as a widespread
            implementation does that changes the cosines in place; to reproduce its runs.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        s: float = 64.0,
        m: float = 0.5,
        easy_margin: bool = False,
        straight_through: bool = False,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_classes, embedding_size, s=s, **options)
        require(0 <= m <= math.pi / 2, "head.m", m, "an angular margin must be from 0 to π/2 (radians)")
        self.m = m
        self.easy_margin = easy_margin
        self.straight_through = straight_through

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        margin_B = add_angle(cosine_B, self.m, easy=self.easy_margin)
        return cosine_B + (margin_B - cosine_B).detach() if self.straight_through else margin_B


@HEADS.register("combined")
class Combined(MarginHead):
    """Target cos(m1·θ_y + m2) − m3. Deng et al. 2019, CVPR, equation 4.

    Past m1·θ + m2 = π a plain cosine would rise again. With m1 = 1 the target continues as `arcface` does;
    otherwise as ψ of SphereFace, (−1)^k·cos(m1·θ + m2) − 2k, which falls without a jump.

    Args:
        s: scale, > 0.
        m1: angular factor, > 0; m1=1, m3=0 is `arcface`, m1=1, m2=0 is `cosface`.
        m2: angular margin in radians, in [0, π/2].
        m3: cosine margin, in [0, 2).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        s: float = 64.0,
        m1: float = 1.0,
        m2: float = 0.3,
        m3: float = 0.2,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_classes, embedding_size, s=s, **options)
        require(m1 > 0, "head.m1", m1, "must be greater than 0")
        require(0 <= m2 <= math.pi / 2, "head.m2", m2, "an angular margin must be from 0 to π/2 (radians)")
        require(0 <= m3 < 2, "head.m3", m3, "a cosine margin must be from 0 to below 2")
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        if self.m1 == 1:
            return add_angle(cosine_B, self.m2) - self.m3
        # atan2 keeps its slope finite at θ = 0 and π, where that of arccos is infinite.
        angle_B = self.m1 * torch.atan2(sine(cosine_B), cosine_B) + self.m2
        turn_B = (angle_B.detach() / math.pi).floor()
        sign_B = 1 - 2 * (turn_B % 2)
        return sign_B * angle_B.cos() - 2 * turn_B - self.m3


def add_angle(cosine: Tensor, m: float | Tensor, easy: bool = False) -> Tensor:
    """cos(θ + m) from cos θ, exact while θ + m ≤ π, and decreasing beyond (see `ArcFace`).

    Args:
        cosine: cos θ in [-1, 1], any shape.
        m: angle in radians, in [0, π/2]; a number, or a tensor of the same shape.
        easy: instead of the decreasing continuation, add the angle only while cos θ > 0.
    """
    m = torch.as_tensor(m, dtype=cosine.dtype, device=cosine.device)
    margin = cosine * m.cos() - sine(cosine) * m.sin()
    if easy:
        return torch.where(cosine > 0, margin, cosine)
    return torch.where(cosine > -m.cos(), margin, cosine - m * m.sin())
