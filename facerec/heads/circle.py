"""Circle loss in its form with class weights."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from facerec.errors import require
from facerec.heads.base import HEADS, HeadOptions, MarginHead, Samples
from facerec.heads.mechanism.terms import Term


@HEADS.register("circle")
class Circle(MarginHead):
    """Logits γ·α_p·(c_y − (1 − m)) and γ·α_n·(c_j − m), α_p = max(0, 1 + m − c_y), α_n = max(0, c_j + m).

    The weights α are constants to the gradient: what is far from its optimum moves faster. Sun et al. 2020,
    CVPR, "Circle Loss", arXiv 2002.10857, with class weights.

    Args:
        s: scale γ > 0; 256, as published for faces.
        m: relaxation in (0, 1); 0.25.
        options: see `HeadOptions`.
    """

    def __init__(self, *, s: float = 256.0, m: float = 0.25, **options: Unpack[HeadOptions]) -> None:
        super().__init__(s=s, **options)
        require(0 < m < 1, "head.m", m, "must be greater than 0 and less than 1")
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        weight_B = (1 + self.m - cosine_B.detach()).clamp_min(0)
        return weight_B * (cosine_B - (1 - self.m))

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return CircleNegatives(self.s, self.m)


class CircleNegatives(Term):
    """s·α·(c − m), α = max(0, c + m) constant to the gradient."""

    def __init__(self, s: float, m: float) -> None:
        self.s, self.m = s, m

    def value(self, product_KB: Tensor) -> Tensor:
        return self.slope(product_KB).mul_(product_KB - self.m)

    def slope(self, product_KB: Tensor) -> Tensor:
        return (product_KB + self.m).clamp_min_(0).mul_(self.s)
