"""Center loss: a softmax that also draws every embedding to a centre of its class."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.heads.base import HEADS
from facerec.heads.mechanism.batch import Samples
from facerec.heads.mechanism.class_sums import ClassSums
from facerec.heads.mechanism.ranges import NotNegative, Range
from facerec.heads.softmax import Softmax


@HEADS.register("center")
class Center(Softmax):
    """Cross entropy of `softmax` + λ/2·mean_i ‖x_i − centre_{y_i}‖².

    After a batch in training mode centre_j moves by −α·Δ_j, Δ_j = Σ_{y_i=j}(centre_j − x_i)/(1 + n_j), n_j
    the samples of class j among the batches of all ranks; the optimizer does not move it. The centres start
    at zero, and every rank has all of them. Wen et al. 2016, ECCV, "A Discriminative Feature Learning
    Approach", equations 4 and 5.

    Args:
        lambda_c: λ, weight of the distances.
        alpha: α, rate of the centres, in [0, 1].
    """

    lambda_c: NotNegative = 0.003
    alpha: Annotated[float, Range(lambda x: 0 <= x <= 1, "a rate must be from 0 to 1")] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.centre_CD = nn.Buffer(torch.zeros(self.num_classes, self.embedding_size))

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        loss_B, statistics = super().loss(sums, samples)
        offset_BD = samples.embedding_BD - self.centre_CD[samples.label_B]
        distance_B = offset_BD.square().sum(1)
        if self.training:
            self.move_centres(offset_BD.detach(), samples.label_B, samples.sizes)
        return loss_B + self.lambda_c / 2 * distance_B, statistics | {"centre_distance": distance_B.mean()}

    @torch.no_grad()
    def move_centres(self, offset_BD: Tensor, label_B: Tensor, sizes: distributed.Sizes) -> None:
        """Move the centres by the offsets (x − centre) of all ranks' embeddings."""
        # The trainer gives the sizes, another caller need not.
        sizes = sizes or distributed.all_gather_object(len(label_B))
        offset_GD, label_G = distributed.all_gather(offset_BD, sizes), distributed.all_gather(label_B, sizes)
        count_C = torch.zeros_like(self.centre_CD[:, 0])
        count_C.index_add_(0, label_G, torch.ones_like(offset_GD[:, 0]))
        step_GD = offset_GD * (self.alpha / (1 + count_C[label_G]))[:, None]
        # Added up in one order, or on a GPU the centres of different ranks would differ in the last bits.
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            self.centre_CD.index_add_(0, label_G, step_GD)
        finally:
            torch.use_deterministic_algorithms(before)
