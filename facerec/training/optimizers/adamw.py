"""Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from facerec.errors import require
from facerec.training.optimizers import OPTIMIZERS, OptimizerSettings, uncompiled


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """`torch.optim.AdamW`, fused.

    Args:
        betas: of the two running means, each in [0, 1).
    """

    betas: tuple[float, ...] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good, "optimizer.betas", list(self.betas), "must be two numbers from 0 to below 1")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind = uncompiled(torch.optim.AdamW)
        return kind(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=True)
