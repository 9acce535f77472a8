"""Softmax without a margin: plain, and over normalised weights and embeddings."""

from __future__ import annotations

from torch import Tensor

from facerec.heads.base import HEADS, ClassHead, MarginHead, Samples, cross_entropy
from facerec.heads.class_sums import ClassSums, Scaled, Term


@HEADS.register("softmax")
class Softmax(ClassHead):
    """Cross entropy over z_j = W_j·x + b_j, neither side normalised.

    The reported cosines are those of the angle between x and W_j, without lengths and biases.
    """

    normalise_weight = False
    has_bias = True

    def query(self, embedding_BD: Tensor) -> Tensor:
        return embedding_BD

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return Scaled()

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(sums.target_B, sums.others_B), {}


@HEADS.register("normface")
class NormFace(MarginHead):
    """Cross entropy over s·cos θ_j: no margin. Wang et al. 2017, "NormFace", arXiv 1704.06369.

    Defaults: s=64. cos θ_j ∈ [-1, 1], so the loss is bounded below by about log(1 + (C−1)·e^(−2s)).
    """

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        return cosine_B
