"""ElasticFace: a margin drawn anew for every sample."""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from torch import Tensor

from facerec.errors import require
from facerec.heads.base import HEADS, MarginHead, MarginOptions
from facerec.heads.margins import add_angle, require_angle, require_cosine_margin


@HEADS.register("elasticface")
class ElasticFace(MarginHead):
    """`arcface` or `cosface` whose margin is drawn per sample from a normal distribution N(m, σ).

    With `plus` the margins of a batch are handed out in order: the farther a sample is from its class, the
    larger its margin. In evaluation mode every margin is m. Drawn from torch's generator of the embeddings'
    device, so a seed repeats them. Boutros et al. 2022, CVPR Workshops, "ElasticFace", arXiv
    2109.09416.

    Args:
        kind: ``arc`` (cos(θ + margin)) or ``cos`` (cos θ − margin).
        m: mean of the margin; null takes 0.5 for ``arc`` and 0.35 for ``cos``.
        sigma: deviation of the margin, ≥ 0; 0.0125. 0 is `arcface` or `cosface`.
        plus: hand the margins out in order of the cosines.
        options: see `MarginOptions`.
    """

    def __init__(
        self,
        *,
        kind: Literal["arc", "cos"] = "arc",
        m: float | None = None,
        sigma: float = 0.0125,
        plus: bool = False,
        **options: Unpack[MarginOptions],
    ) -> None:
        super().__init__(**options)
        m = {"arc": 0.5, "cos": 0.35}[kind] if m is None else m
        (require_angle if kind == "arc" else require_cosine_margin)("m", m)
        require(sigma >= 0, "head.sigma", sigma, "must be 0 or more")
        self.kind, self.m, self.sigma, self.plus = kind, m, sigma, plus

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        margin_B = self.margins(cosine_B.detach())
        if self.kind == "cos":
            return cosine_B - margin_B
        return add_angle(cosine_B, margin_B.clamp(0, math.pi / 2))

    def margins(self, cosine_B: Tensor) -> Tensor:
        """A margin for each sample."""
        if not self.training:
            return torch.full_like(cosine_B, self.m)
        margin_B = self.m + self.sigma * torch.randn_like(cosine_B)
        if self.plus:
            nearest_first_B = cosine_B.argsort(descending=True)
            margin_B = torch.empty_like(margin_B).scatter_(0, nearest_first_B, margin_B.sort().values)
        return margin_B
