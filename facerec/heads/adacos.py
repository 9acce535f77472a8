"""AdaCos: no margin and no hyperparameter, the scale adapts itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facerec.distributed import Sizes, all_gather, all_reduce_mean
from facerec.heads.base import HEADS, ClassHead, cross_entropy
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.terms import Scaled, Term

LEAST_SCALE = 0.5  # the formulas give 0 or less for one or two classes


@HEADS.register("adacos")
class AdaCos(ClassHead):
    """Cross entropy over s·cos θ_j with an s that adapts: before each batch in training mode

    s ← ln(mean_i Σ_{j≠y} e^{s·c_j}) / cos(min(π/4, median θ_y)), from s = √2·ln(C − 1).

    Mean and median are over all ranks. s is a buffer without gradient, in the checkpoint. The sum at the old
    s costs one more walk over the classes, without gradient. Zhang et al. 2019, CVPR, "AdaCos", arXiv
    1905.00292.

    Args:
        dynamic: adapt s; otherwise it stays √2·ln(C − 1), the paper's fixed AdaCos.
    """

    dynamic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        start = math.sqrt(2) * math.log(max(self.num_classes - 1, 1))
        self.s = nn.Buffer(torch.tensor(max(start, LEAST_SCALE)))

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return Scaled(self.s.clone())

    def sums(self, samples: Samples) -> ClassSums:
        if self.dynamic and self.training and self.num_classes > 1:
            with torch.no_grad():
                self.adapt(super().sums(samples), samples.sizes)
        return super().sums(samples)

    def adapt(self, sums: ClassSums, sizes: Sizes) -> None:
        """Move s on, given the log-sum-exp of the others at the present s."""
        # Relative to e^s, which no e^{s·c} exceeds, nothing overflows.
        mean = all_reduce_mean((sums.others_B - self.s).exp())
        median = all_gather(sums.target_B.clamp(-1, 1).acos(), sizes).median()
        s = (mean.log() + self.s) / median.clamp_max(math.pi / 4).cos()
        self.s.copy_(s.clamp_min(LEAST_SCALE))

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return sums.target_B

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.s.clone()
        return cross_entropy(s * sums.target_B, sums.others_B), {"s": s}
