"""Sub-centre ArcFace: several weight rows per class, of which the nearest counts."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from facerec.heads.base import HEADS
from facerec.heads.margins import ArcFace
from facerec.heads.mechanism.ranges import Range
from facerec.heads.mechanism.sharding import initialise


@HEADS.register("subcenter")
class SubCenter(ArcFace):
    """`arcface` over c_j, the largest of the cosines with the K sub-centres of class j.

    So a class may keep its noisy or hard images in a sub-centre of their own. The weight is (C, K, D). Deng
    et al. 2020, ECCV, "Sub-center ArcFace".

    Args:
        k: sub-centres per class; k=1 is `arcface`.
    """

    k: Annotated[int, Range(lambda k: 1 <= k <= 255, "must be from 1 to 255")] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = nn.Parameter(torch.empty(self.shard.rows, self.k, self.embedding_size))
        initialise(self.weight, self.init, self.shard)
