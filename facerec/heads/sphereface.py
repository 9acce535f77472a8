"""A-Softmax (SphereFace): a multiplicative angular margin, annealed in."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from facerec.errors import require
from facerec.heads.base import HEADS, ClassHead, HeadOptions, Samples, cross_entropy
from facerec.heads.class_sums import ClassSums, Scaled, Term


def psi(cosine: Tensor, m: int) -> Tensor:
    """ψ(θ) = (−1)^k·cos(mθ) − 2k for θ ∈ [kπ/m, (k+1)π/m]; falls without a jump from 1 to 1 − 2m.

    Liu et al. 2017, CVPR, equation 6. cos(mθ) is the Chebyshev polynomial T_m(cos θ), whose slope is finite
    everywhere; k is taken from the angle without gradient, and is m−1 (not m) at θ = π.

    Args:
        cosine: cos θ, any shape; rounding may carry it past ±1.
        m: 1, 2, 3 or 4.
    """
    cosine = cosine.clamp(-1, 1)
    square = cosine * cosine
    multiple = {
        1: lambda: cosine,
        2: lambda: 2 * square - 1,
        3: lambda: (4 * square - 3) * cosine,
        4: lambda: 8 * square * (square - 1) + 1,
    }[m]()
    k = (cosine.detach().acos() * m / math.pi).floor().clamp_max(m - 1)
    return (1 - 2 * (k % 2)) * multiple - 2 * k


class AnnealOptions(HeadOptions, total=False):
    """The course of λ, all ≥ 0; the defaults are those of the released SphereFace solver."""

    base: float
    gamma: float
    power: float
    lambda_min: float


class Annealed(ClassHead):
    """A head whose target logit slides from the plain one to the one with margin.

    target = (λ·plain + margin)/(1+λ), λ = max(λ_min, base·(1 + γ·iter)^(−power)), iter counting the steps of
    the optimizer; it is in the checkpoint.

    Args:
        m: angular factor, 1, 2, 3 or 4; 1 is no margin.
        options: see `AnnealOptions` and `HeadOptions`.
    """

    iteration: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        m: Literal[1, 2, 3, 4],
        base: float = 1000.0,
        gamma: float = 0.12,
        power: float = 1.0,
        lambda_min: float = 5.0,
        **options: Unpack[HeadOptions],
    ) -> None:
        super().__init__(num_classes, embedding_size, **options)
        for name, value in {"base": base, "gamma": gamma, "power": power, "lambda_min": lambda_min}.items():
            require(value >= 0, f"head.{name}", value, "must be 0 or more")
        self.base, self.gamma, self.power, self.lambda_min = base, gamma, power, lambda_min
        self.m = m
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def after_step(self) -> None:
        self.iteration += 1

    def weight_of_plain(self) -> Tensor:
        """λ at the present step, a scalar tensor on the head's device."""
        growth = 1 + self.gamma * self.iteration
        return (self.base * growth**-self.power).clamp_min(self.lambda_min)

    def query(self, embedding_BD: Tensor) -> Tensor:
        return embedding_BD

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return Scaled()


@HEADS.register("sphereface")
class SphereFace(Annealed):
    """A-Softmax: z_j = ‖x‖·cos θ_j with ‖W_j‖ = 1 and no bias; target ‖x‖·ψ(θ_y), annealed.

    Liu et al. 2017, CVPR, "SphereFace", arXiv 1704.08063.

    Args:
        m: angular factor, 1, 2, 3 or 4 (default 4); m=1 is softmax over normalised weights.
        normalize_gradient: for the target class, rescale the two coefficients of ∂(‖x‖ψ)/∂x, that of the unit
            vector W_y and that of x, to unit joint length, as the released Caffe layer does. Not the true
            gradient; that of the weights stays true.
        options: see `AnnealOptions` and `HeadOptions`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        m: Literal[1, 2, 3, 4] = 4,
        normalize_gradient: bool = False,
        **options: Unpack[AnnealOptions],
    ) -> None:
        super().__init__(num_classes, embedding_size, m=m, **options)
        self.normalize_gradient = normalize_gradient

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        length_B = samples.norm_B.clamp_min(torch.finfo(samples.norm_B.dtype).tiny ** 0.5)
        margin_B = samples.norm_B * psi(sums.target_B / length_B, self.m)
        if self.normalize_gradient:
            margin_B = margin_B + self.gradient_correction(sums.cosine_B, samples)
        weight = self.weight_of_plain()
        target_B = (weight * sums.target_B + margin_B) / (1 + weight)
        return cross_entropy(target_B, sums.others_B), {"lambda": weight}

    def gradient_correction(self, cosine_B: Tensor, samples: Samples) -> Tensor:
        """Zero in value; its gradient to x turns the true ∂(‖x‖ψ)/∂x into the rescaled one.

        ∂(‖x‖ψ(c))/∂x = ψ'(c)·ŵ + (ψ(c) − c·ψ'(c))/‖x‖ · x: the two numbers before ŵ and x are rescaled.
        """
        embedding_BD, label_B, norm_B = samples
        with torch.enable_grad():
            variable_B = cosine_B.detach().requires_grad_()
            value_B = psi(variable_B, self.m)
            (slope_B,) = torch.autograd.grad(value_B.sum(), variable_B)
        along_w_B = slope_B
        along_x_B = (value_B.detach() - cosine_B * slope_B) / norm_B.detach().clamp_min(1e-12)
        excess_B = (along_w_B.square() + along_x_B.square()).rsqrt() - 1
        own_BD = nn.functional.normalize(self.weight.detach()[label_B])
        direction_BD = along_w_B[:, None] * own_BD + along_x_B[:, None] * embedding_BD.detach()
        surrogate_B = (excess_B[:, None] * direction_BD * embedding_BD).sum(1)
        return surrogate_B - surrogate_B.detach()
