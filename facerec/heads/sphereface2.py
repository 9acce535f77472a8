"""SphereFace2: a binary classification for every class instead of one among all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from facerec.heads.base import HEADS, ClassHead
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.ranges import Positive, Range
from facerec.heads.mechanism.terms import Elementwise, Term


@HEADS.register("sphereface2")
class SphereFace2(ClassHead):
    """λ/r·log(1 + e^{−r(g(c_y) − m) − b}) + (1−λ)/r·Σ_{j≠y} log(1 + e^{r(g(c_j) + m) + b}).

    g(c) = 2·((c + 1)/2)^t − 1 stretches the similarities; b is the parameter `offset`, which starts where its
    gradient is zero if all cosines are 0. Wen et al. 2022, ICLR, "SphereFace2", arXiv 2108.01513, with its
    margin on both sides.

    Args:
        r: scale.
        m: margin, in [0, 1).
        t: power of g, ≥ 1; t=1 leaves the cosines as they are.
        lambda_p: λ in (0, 1), weight of the positive.
        loss_weight: factor of the loss. The released code takes 50 with its learning rates.
        straight_through: give g derivative 1, as the released code does.
        projected: scale the class rows to length 1 before each step and take their products as they are, as
            the released code does; else the loss divides by their lengths, and its gradient knows of it.
    """

    r: Positive = 40.0
    m: Annotated[float, Range(lambda m: 0 <= m < 1, "must be from 0 to below 1")] = 0.4
    t: Annotated[float, Range(lambda t: t >= 1, "must be 1 or more")] = 3.0
    lambda_p: Annotated[float, Range(lambda x: 0 < x < 1, "must be between 0 and 1")] = 0.7
    loss_weight: Positive = 1.0
    straight_through: bool = False
    projected: bool = False

    @property
    def normalise_weight(self) -> bool:  # type: ignore[override]
        return not self.projected

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offset = nn.Parameter(torch.tensor(self.balanced_offset()))

    def balanced_offset(self) -> float:
        """Return the b at which its gradient is zero for cosines of 0; a quadratic equation in e^b."""
        odds = self.lambda_p / ((1 - self.lambda_p) * max(self.num_classes - 1, 1))
        at_zero = 2 * 0.5**self.t - 1
        negative = self.r * (at_zero + self.m)
        root = math.sqrt((1 - odds) ** 2 + 4 * odds * math.exp(-2 * self.r * self.m))
        if odds > 1:  # few classes: the same quotient without the difference of two near numbers
            return math.log((odds - 1 + root) / 2) + 2 * self.r * self.m - negative
        return math.log(2 * odds / (1 - odds + root)) - negative

    def stretch(self, cosine: Tensor) -> Tensor:
        """Return g, elementwise."""
        stretched = 2 * ((cosine + 1) / 2).clamp_min(0) ** self.t - 1
        return cosine + (stretched - cosine).detach() if self.straight_through else stretched

    def sums(self, samples: Samples) -> ClassSums:
        if self.projected and self.training:
            with torch.no_grad():
                self.weight.div_(torch.linalg.vector_norm(self.weight, dim=1, keepdim=True).clamp_min(1e-12))
        return super().sums(samples)

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        b = self.offset.detach().clone()
        return Rejections(lambda cosine_KB: self.r * (self.stretch(cosine_KB) + self.m) + b)

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return self.stretch(sums.target_B) - self.m

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        accept_B = softplus(-self.r * self.target_logit(sums, samples) - self.offset, threshold=50)
        # The sum over the others took b as a constant; its slope in b came with it.
        reject_B = sums.others_B + sums.extra[0] * (self.offset - self.offset.detach())
        loss_B = (self.lambda_p * accept_B + (1 - self.lambda_p) * reject_B) / self.r
        parts = {"positive_loss": accept_B.mean() / self.r, "negative_loss": sums.others_B.mean() / self.r}
        return self.loss_weight * loss_B, parts | {"offset": self.offset.clone()}


class Rejections(Elementwise):
    """log(1 + e^u) of each class's logit u, and beside it the derivative by u."""

    def __init__(self, logit: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda cosine_KB: softplus(logit(cosine_KB), threshold=50), reduction="sum")
        self.logit = logit

    def extra(self, product_KB: Tensor) -> tuple[Tensor, ...]:
        return (self.logit(product_KB).sigmoid(),)
