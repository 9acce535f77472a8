"""Heads that also change hard negatives: MV-Softmax, CurricularFace, NPCFace and ArcNegFace."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from facerec.distributed import all_reduce_mean
from facerec.heads.base import HEADS, MarginHead
from facerec.heads.margins import ArcFace, add_angle, rotate
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.ranges import (
    ANGULAR_MARGIN,
    COSINE_MARGIN,
    AngularMargin,
    Momentum,
    NotNegative,
    Positive,
)
from facerec.heads.mechanism.terms import Term


class HardNegatives(Term):
    """s·c; but s·(quadratic·c² + linear·c + constant) for hard negatives, those with c above a threshold."""

    def __init__(
        self,
        s: float,
        threshold_B: Tensor,
        *,
        quadratic: float = 0.0,
        linear: float | Tensor = 1.0,
        constant: float = 0.0,
    ) -> None:
        self.s, self.threshold_B = s, threshold_B
        self.quadratic, self.linear, self.constant = quadratic, linear, constant

    def value(self, product_KB: Tensor) -> Tensor:
        hard_KB = (self.quadratic * product_KB).add_(self.linear).mul_(product_KB).add_(self.constant)
        return torch.where(product_KB > self.threshold_B, hard_KB, product_KB).mul_(self.s)

    def slope(self, product_KB: Tensor) -> Tensor:
        hard_KB = (2 * self.quadratic * product_KB).add_(self.linear)
        return torch.where(product_KB > self.threshold_B, hard_KB, 1.0).mul_(self.s)


@HEADS.register("mvsoftmax")
class MVSoftmax(MarginHead):
    """`cosface` or `arcface`, with the negatives that win against its target raised.

    These become c_j + t·(c_j + 1), or with fixed weights c_j + t. Wang et al. 2020, AAAI, "Mis-classified
    Vector Guided Softmax Loss", arXiv 1912.00833.

    Args:
        s: scale.
        kind: margin of the target, ``am`` (cos θ − m) or ``arc`` (cos(θ + m)).
        m: margin; 0.5 is common for ``arc``.
        t: emphasis of hard negatives; t=0 is `cosface` or `arcface`.
        adaptive: c_j + t·(c_j + 1), otherwise the fixed c_j + t.
        easy_margin: the margin only for targets it leaves positive (``am``) or with θ < π/2 (``arc``), as the
            released code does.
    """

    s: Positive = 32.0
    kind: Literal["am", "arc"] = "am"
    m: float = 0.35
    t: NotNegative = 0.2
    adaptive: bool = True
    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        (COSINE_MARGIN if self.kind == "am" else ANGULAR_MARGIN).check("head.m", self.m)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        if self.kind == "arc":
            return add_angle(cosine_B, self.m, easy=self.easy_margin)
        margin_B = cosine_B - self.m
        return torch.where(margin_B > 0, margin_B, cosine_B) if self.easy_margin else margin_B

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        threshold_B = target_B - self.m if self.kind == "am" else rotate(target_B, self.m)
        linear = 1 + self.t if self.adaptive else 1.0
        return HardNegatives(self.s, threshold_B, linear=linear, constant=self.t)


@HEADS.register("curricularface")
class CurricularFace(ArcFace):
    """`arcface` whose hard negatives, c_j > cos(θ_y + m), become c_j·(t + c_j).

    t ← ema·mean(cos θ_y) + (1 − ema)·t before each batch in training mode, from 0: hard negatives count
    little early and more as the targets' cosines grow. It is that of all ranks together, and in the
    checkpoint. Huang et al. 2020, CVPR, "CurricularFace", arXiv 2004.00288.

    Args:
        ema: momentum of t.
    """

    ema: Momentum = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.t = nn.Buffer(torch.zeros(()))

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        if self.training:
            self.t.lerp_(all_reduce_mean(target_B).to(self.t.dtype), self.ema)
        threshold_B = rotate(target_B, self.m)
        return HardNegatives(self.s, threshold_B, quadratic=1.0, linear=self.t.clone())

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B, _ = super().loss(sums, samples)
        return loss_B, {"t": self.t.clone()}


@HEADS.register("npcface")
class NPCFace(MarginHead):
    """Hard negatives become t·c_j + a, and the harder they are, the wider the target's angular margin.

    c_j is hard where c_j > cos(θ_y + m_hard). The target is cos(θ_y + m̃), m̃ = m0 + m1·(mean c_j of the hard
    negatives, without gradient; 0 if there are none). Zeng et al. 2021, AAAI, "NPCFace", arXiv 2007.10172.

    Args:
        m0: margin in radians without hard negatives.
        m1: growth of the margin with the cosine of hard negatives.
        t: factor of hard negatives.
        a: what is added to them.
        m_hard: angle in radians beyond the target's within which a negative is hard, as in the released code.
        easy_margin: the margin only while θ_y < π/2, as in the released code; otherwise as in `arcface`.
    """

    m0: AngularMargin = 0.4
    m1: NotNegative = 0.2
    t: NotNegative = 1.1
    a: NotNegative = 0.2
    m_hard: AngularMargin = 0.5
    easy_margin: bool = True

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        threshold_B = rotate(target_B, self.m_hard)
        return CountedHardNegatives(self.s, threshold_B, linear=self.t, constant=self.a)

    def margin(self, sums: ClassSums) -> Tensor:
        """Return m̃ of each sample."""
        cosine_B, count_B = sums.extra
        return self.m0 + self.m1 * cosine_B / count_B.clamp_min(1)

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return add_angle(sums.target_B, self.margin(sums), easy=self.easy_margin)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B, _ = super().loss(sums, samples)
        return loss_B, {"margin": self.margin(sums).mean(), "hard_negatives": sums.extra[1].mean()}


class CountedHardNegatives(HardNegatives):
    """`HardNegatives` that also sums the hard ones' cosines and counts them."""

    def extra(self, product_KB: Tensor) -> tuple[Tensor, ...]:
        hard_KB = (product_KB > self.threshold_B).to(product_KB.dtype)
        return hard_KB * product_KB, hard_KB


@HEADS.register("arcneg")
class ArcNegFace(ArcFace):
    """`arcface` whose negatives become t_j·c_j + t_j − 1, t_j = α·exp(−(c_j − target)²/σ) without gradient.

    The target in t_j is the cosine with its margin: the nearer a negative is to it, the more it weighs. Liu
    et al. 2019, ICCV Workshops, "Towards Flops-constrained Face Recognition", arXiv 1909.00632.

    Args:
        alpha: α.
        sigma: σ.
    """

    alpha: Positive = 1.2
    sigma: Positive = 2.0

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return NearNegatives(self.s, self.alpha, self.sigma, self.target(target_B, samples.norm_B))


class NearNegatives(Term):
    """s·(t·c + t − 1), t = α·exp(−(c − centre)²/σ) constant to the gradient."""

    def __init__(self, s: float, alpha: float, sigma: float, centre_B: Tensor) -> None:
        self.s, self.alpha, self.sigma, self.centre_B = s, alpha, sigma, centre_B

    def value(self, product_KB: Tensor) -> Tensor:
        return self.slope(product_KB).mul_(product_KB + 1).sub_(self.s)

    def slope(self, product_KB: Tensor) -> Tensor:
        distance_KB = (product_KB - self.centre_B).square_()
        return distance_KB.div_(-self.sigma).exp_().mul_(self.s * self.alpha)
