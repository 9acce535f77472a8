"""SFace: sigmoid-weighted pulls and pushes on the sphere instead of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from facerec.heads.base import HEADS, ClassHead
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.quality import RunningNorm, quality_statistics
from facerec.heads.mechanism.ranges import Angle, Momentum, NotNegative, Positive
from facerec.heads.mechanism.terms import Term


class Push(Term):
    """r_inter(θ)·s·cos θ into a plain sum, r_inter(θ) = 1/(1 + e^{k(θ − b)}) a constant to the gradient."""

    reduction = "sum"

    def __init__(self, s: float, k: float, b: float) -> None:
        self.s, self.k, self.b = s, k, b

    def value(self, product_KB: Tensor) -> Tensor:
        return self.slope(product_KB).mul_(product_KB)

    def slope(self, product_KB: Tensor) -> Tensor:
        angle_KB = product_KB.clamp(-1, 1).acos_()
        return angle_KB.sub_(self.b).mul_(-self.k).sigmoid_().mul_(self.s)


@HEADS.register("sface")
class SFace(ClassHead):
    """L = mean_i[ −r_intra(θ_y)·s·cos θ_y + Σ_{j≠y} r_inter(θ_j)·s·cos θ_j ]; not a softmax.

    r_intra(θ) = 1/(1 + e^{−k(θ−a)}) pulls a sample to its class until the angle is about a, r_inter(θ) =
    1/(1 + e^{k(θ−b)}) pushes it from the others until theirs is about b. Both are constants to the gradient,
    so that its length is s·r·sin θ. The loss may be negative. Zhong et al. 2021, IEEE TIP, "SFace", arXiv
    2205.12010.

    Args:
        s: scale.
        k: steepness of both sigmoids.
        a: angle (radians) where the pull has half its strength; 0.87 for CASIA, 0.80 for MS1MV2.
        b: angle (radians) where the push has half its strength; 1.22 for CASIA, 1.23 for MS1MV2.
    """

    init: float | str = "sface"
    s: Positive = 64.0
    k: Positive = 80.0
    a: Angle = 0.87
    b: Angle = 1.22

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return Push(self.s, self.k, self.b)

    def pull(self, angle_B: Tensor, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """Return r_intra of the targets' angles, in [0, 1], and statistics; without gradient."""
        return torch.sigmoid(self.k * (angle_B - self.a)), {}

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        pull_B, _ = self.pull(sums.target_B.clamp(-1, 1).acos(), samples)
        return pull_B * sums.target_B

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            pull_B, statistics = self.pull(sums.target_B.clamp(-1, 1).acos(), samples)
        intra_B = -pull_B * self.s * sums.target_B
        parts = {"intra_loss": intra_B.mean(), "inter_loss": sums.others_B.mean()}
        return intra_B + sums.others_B, parts | statistics


@HEADS.register("sface_quality")
class SFaceQuality(SFace):
    """`sface` whose pull on hard samples depends on how good the image is. A formula of this project's own.

    Quality q = (1 + clip(h·(‖x‖ − μ)/σ, −1, 1))/2 ∈ [0, 1], with running mean μ and deviation σ of the
    embeddings' norms. r_intra is multiplied by q + (1 − q)/(1 + e^{k(θ_y − c)}): a hard sample (θ_y > c)
    keeps its pull when the image is good and loses it when it is poor, since then the label may be all that
    is left of the face. With q = 1 it is `sface`. No gradient flows through q.

    Args:
        h: speed at which the quality follows the norm; h=0 gives every image q = 1/2.
        c: angle (radians) from which on a sample counts as hard.
        ema: momentum of μ and σ.
    """

    h: NotNegative = 0.333
    c: Angle = 1.3
    ema: Momentum = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norm = RunningNorm(self.ema)

    def pull(self, angle_B: Tensor, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        quality_B = (1 + (self.h * self.norm(samples.norm_B)).clamp(-1, 1)) / 2
        keep_B = quality_B + (1 - quality_B) * torch.sigmoid(self.k * (self.c - angle_B))
        return super().pull(angle_B, samples)[0] * keep_B, quality_statistics(quality_B)
