"""ElasticFace: a margin drawn anew for every sample."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from facerec.heads.base import HEADS, MarginHead
from facerec.heads.margins import add_angle
from facerec.heads.mechanism.ranges import ANGULAR_MARGIN, COSINE_MARGIN, NotNegative


@HEADS.register("elasticface")
class ElasticFace(MarginHead):
    """`arcface` or `cosface` whose margin is drawn per sample from a normal distribution N(m, σ).

    With `plus` the margins of a batch are handed out in order: the farther a sample is from its class, the
    larger its margin. In evaluation mode every margin is m. Drawn from torch's generator of the embeddings'
    device, so a seed repeats them. Boutros et al. 2022, CVPR Workshops, "ElasticFace", arXiv 2109.09416.

    Args:
        kind: ``arc`` (cos(θ + margin)) or ``cos`` (cos θ − margin).
        m: mean of the margin; null takes 0.5 for ``arc`` and 0.35 for ``cos``.
        sigma: deviation of the margin; 0 is `arcface` or `cosface`.
        plus: hand the margins out in order of the cosines.
    """

    kind: Literal["arc", "cos"] = "arc"
    m: float | None = None
    sigma: NotNegative = 0.0125
    plus: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mean = {"arc": 0.5, "cos": 0.35}[self.kind] if self.m is None else self.m
        (ANGULAR_MARGIN if self.kind == "arc" else COSINE_MARGIN).check("head.m", self.mean)
        self.m = self.mean

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        margin_B = self.margins(cosine_B.detach())
        if self.kind == "cos":
            return cosine_B - margin_B
        return add_angle(cosine_B, margin_B.clamp(0, math.pi / 2))

    def margins(self, cosine_B: Tensor) -> Tensor:
        """Return a margin for each sample."""
        if not self.training:
            return torch.full_like(cosine_B, self.mean)
        margin_B = self.mean + self.sigma * torch.randn_like(cosine_B)
        if self.plus:
            nearest_first_B = cosine_B.argsort(descending=True)
            margin_B = torch.empty_like(margin_B).scatter_(0, nearest_first_B, margin_B.sort().values)
        return margin_B
