"""Multiplicative angular margins, annealed in: A-Softmax (SphereFace) and L-Softmax."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from facerec.heads.base import HEADS, ClassHead, cross_entropy
from facerec.heads.mechanism.batch import Samples, inverse_norm
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.ranges import NotNegative
from facerec.heads.mechanism.sharding import own_rows
from facerec.vectors import unit_rows


def psi(cosine: Tensor, m: int) -> Tensor:
    """Return ψ(θ) = (−1)^k·cos(mθ) − 2k for θ ∈ [kπ/m, (k+1)π/m]; it falls without a jump from 1 to 1 − 2m.

    Liu et al. 2017, CVPR, "SphereFace". cos(mθ) is the Chebyshev polynomial T_m(cos θ), whose slope is finite
    everywhere; k is taken from the angle without gradient, and is m−1 (not m) at θ = π.

    Args:
        cosine: cos θ, any shape; rounding may carry it past ±1.
        m: 1, 2, 3 or 4.
    """
    square = cosine * cosine
    multiple = {
        1: lambda: cosine,
        2: lambda: 2 * square - 1,
        3: lambda: (4 * square - 3) * cosine,
        4: lambda: 8 * square * (square - 1) + 1,
    }[m]()
    k = (cosine.detach().clamp(-1, 1).acos() * m / math.pi).floor().clamp_max(m - 1)
    return (1 - 2 * (k % 2)) * multiple - 2 * k


class Annealed(ClassHead):
    """A head whose target logit slides from the plain one to the one with margin.

    target = (λ·plain + margin)/(1+λ), λ = max(lambda_min, base·(1 + gamma·iter)^(−power)), iter counting the
    steps of the optimizer; it is in the checkpoint. The defaults are those of the released SphereFace solver.

    Args:
        m: factor of the angle; 1 is no margin.
        base, gamma, power, lambda_min: course of λ.
    """

    m: Literal[1, 2, 3, 4] = 4
    base: NotNegative = 1000.0
    gamma: NotNegative = 0.12
    power: NotNegative = 1.0
    lambda_min: NotNegative = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.iteration = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def after_step(self) -> None:
        self.iteration.add_(1)

    def weight_of_plain(self) -> Tensor:
        """Return λ at the present step, a scalar tensor on the head's device."""
        growth = 1 + self.gamma * self.iteration.to(self.weight.dtype)
        return (self.base * growth**-self.power).clamp_min(self.lambda_min)

    def query(self, samples: Samples) -> Tensor:
        return samples.embedding_BD

    def margin(self, sums: ClassSums, samples: Samples) -> Tensor:
        """Return the target logits with the full margin."""
        raise NotImplementedError

    def annealed(self, sums: ClassSums, samples: Samples) -> Tensor:
        """Return the target logits with the present part of the margin."""
        plain = self.weight_of_plain()
        return (plain * sums.target_B + self.margin(sums, samples)) / (1 + plain)

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return self.annealed(sums, samples) / samples.norm_B

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B = cross_entropy(self.annealed(sums, samples), sums.others_B)
        return loss_B, {"lambda": self.weight_of_plain()}


@HEADS.register("lsoftmax")
class LSoftmax(Annealed):
    """L-Softmax: z_j = ‖W_j‖·‖x‖·cos θ_j; target ‖W_y‖·‖x‖·ψ(θ_y), annealed. Lengths of weights stay free.

    Liu et al. 2016, ICML, "Large-Margin Softmax Loss", arXiv 1612.02295. m=1 is softmax without bias.
    """

    normalise_weight = False

    def margin(self, sums: ClassSums, samples: Samples) -> Tensor:
        inverse_B = inverse_norm(samples.norm_B) / sums.target_norm_B
        return samples.norm_B * sums.target_norm_B * psi(sums.target_B * inverse_B, self.m)


@HEADS.register("sphereface")
class SphereFace(Annealed):
    """A-Softmax: z_j = ‖x‖·cos θ_j with ‖W_j‖ = 1 and no bias; target ‖x‖·ψ(θ_y), annealed.

    Liu et al. 2017, CVPR, "SphereFace", arXiv 1704.08063. m=1 is softmax over normalised weights.

    Args:
        normalize_gradient: for the target class, rescale the two coefficients of ∂(‖x‖ψ)/∂x, that of the unit
            vector W_y and that of x, to unit joint length, as the released Caffe layer does. Not the true
            gradient; that of the weights stays true.
    """

    normalize_gradient: bool = False

    def margin(self, sums: ClassSums, samples: Samples) -> Tensor:
        margin_B = samples.norm_B * psi(sums.target_B * inverse_norm(samples.norm_B), self.m)
        if self.normalize_gradient:
            margin_B = margin_B + self.gradient_correction(sums.cosine_B, samples)
        return margin_B

    def gradient_correction(self, cosine_B: Tensor, samples: Samples) -> Tensor:
        """Return zeros whose gradient to x turns the true ∂(‖x‖ψ)/∂x into the rescaled one.

        ∂(‖x‖ψ(c))/∂x = ψ'(c)·ŵ + (ψ(c) − c·ψ'(c))/‖x‖ · x: the two numbers before ŵ and x are rescaled.
        """
        embedding_BD, label_B, norm_B, sizes = samples
        with torch.enable_grad():
            variable_B = cosine_B.detach().requires_grad_()
            value_B = psi(variable_B, self.m)
            (slope_B,) = torch.autograd.grad(value_B.sum(), variable_B)
        along_x_B = (value_B.detach() - cosine_B * slope_B) * inverse_norm(norm_B.detach())
        length_B = (slope_B.square() + along_x_B.square()).sqrt()
        excess_B = 1 / length_B.clamp_min(torch.finfo(length_B.dtype).eps) - 1
        own_BD = unit_rows(own_rows(self.weight, label_B, self.shard, sizes))
        direction_BD = slope_B[:, None] * own_BD + along_x_B[:, None] * embedding_BD.detach()
        surrogate_B = (excess_B[:, None] * direction_BD * embedding_BD).sum(1)
        return surrogate_B - surrogate_B.detach()
