"""Softmax without a margin: plain, over normalised embeddings, and over normalised weights as well."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from facerec.heads.base import HEADS, ClassHead, MarginHead, cross_entropy
from facerec.heads.mechanism.batch import Samples, inverse_norm
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.ranges import Range


@HEADS.register("softmax")
class Softmax(ClassHead):
    """Cross entropy over z_j = W_j·x + b_j, neither side normalised.

    The reported cosines are those of the angle between x and W_j, without lengths and biases.
    """

    normalise_weight = False
    has_bias = True

    def query(self, samples: Samples) -> Tensor:
        return samples.embedding_BD

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return sums.target_B / samples.norm_B

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(sums.target_B, sums.others_B), {}


@HEADS.register("l2softmax")
class L2Softmax(Softmax):
    """Cross entropy over z_j = W_j·(α·x/‖x‖) + b_j: embeddings on a sphere of radius α, weights free.

    Ranjan et al. 2017, "L2-constrained Softmax", arXiv 1703.09507, with α fixed.

    Args:
        alpha: radius α.
    """

    alpha: Annotated[float, Range(lambda x: x > 0, "a radius must be greater than 0")] = 16.0

    def query(self, samples: Samples) -> Tensor:
        return samples.embedding_BD * (self.alpha * inverse_norm(samples.norm_B))[:, None]

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return sums.target_B / self.alpha


@HEADS.register("normface")
class NormFace(MarginHead):
    """Cross entropy over s·cos θ_j: no margin. Wang et al. 2017, "NormFace", arXiv 1704.06369.

    cos θ_j ∈ [-1, 1], so the loss is bounded below by about log(1 + (C−1)·e^(−2s)).
    """

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        return cosine_B
