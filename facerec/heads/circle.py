"""Circle loss in its form with class weights."""

from __future__ import annotations

from torch import Tensor

from facerec.heads.base import HEADS, MarginHead
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.ranges import Fraction, Positive
from facerec.heads.mechanism.terms import Term


@HEADS.register("circle")
class Circle(MarginHead):
    """Logits γ·α_p·(c_y − (1 − m)) and γ·α_n·(c_j − m), α_p = max(0, 1 + m − c_y), α_n = max(0, c_j + m).

    The weights α are constants to the gradient: what is far from its optimum moves faster. Sun et al. 2020,
    CVPR, "Circle Loss", arXiv 2002.10857, with class weights.

    Args:
        s: scale γ; 256, as published for faces.
        m: relaxation.
    """

    s: Positive = 256.0
    m: Fraction = 0.25

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
