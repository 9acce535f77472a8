"""Sub-centre ArcFace: several weight rows a class, of which the nearest counts."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from facerec.errors import require
from facerec.heads.base import HEADS, initialise
from facerec.heads.margins import ArcFace, ArcOptions


@HEADS.register("subcenter")
class SubCenter(ArcFace):
    """`arcface` over c_j, the largest of the cosines with the K sub-centres of class j.

    So a class may keep its noisy or hard images in a sub-centre of their own. The weight is (C, K, D). Deng
    et al. 2020, ECCV, "Sub-center ArcFace".

    Args:
        k: sub-centres a class, from 1 to 255; 3. k=1 is `arcface`.
        options: see `ArcFace`.
    """

    def __init__(self, *, k: int = 3, **options: Unpack[ArcOptions]) -> None:
        super().__init__(**options)
        require(1 <= k <= 255, "head.k", k, "must be from 1 to 255")
        self.k = k
        self.weight = nn.Parameter(self.new_weight(k, self.embedding_size))
        initialise(self.weight, self.init, self.shard)
