"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from facerec.errors import require
from facerec.settings import BelowOne
from facerec.training.optimizers import OPTIMIZERS, OptimizerSettings, uncompiled


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """`torch.optim.SGD`, fused.

    Args:
        momentum: in [0, 1).
        nesterov: needs a momentum.
    """

    momentum: BelowOne = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        usable = not self.nesterov or self.momentum > 0
        require(usable, "optimizer.nesterov", self.nesterov, "needs optimizer.momentum greater than 0")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind = uncompiled(torch.optim.SGD)
        return kind(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=True)
