"""Class weights that are too many for one rank, and how they start.

An et al. 2022, "Killing Two Birds with One Stone", arXiv 2203.15565.

Shapes: B samples of this rank, G of all ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from facerec import distributed
from facerec.errors import ConfigError, require

_CLASSES_PER_DRAW = 4096  # torch draws in groups of 16 numbers, which must not be cut


class Shard(NamedTuple):
    """The classes start … stop−1 of `classes`, held by this rank; divided as `torch.chunk` and DTensor do."""

    start: int
    stop: int
    classes: int

    @classmethod
    def of(cls, classes: int, rank: int = 0, world_size: int = 1) -> Shard:
        """Return the shard of one rank."""
        size = -(-classes // world_size)
        return cls(min(rank * size, classes), min((rank + 1) * size, classes), classes)

    @property
    def rows(self) -> int:
        """The number of classes here."""
        return self.stop - self.start

    @property
    def complete(self) -> bool:
        """True where all classes are here."""
        return self.rows == self.classes

    def local(self, label: Tensor) -> Tensor:
        """Return labels as rows of this rank, −1 for those of others."""
        inside = (label >= self.start) & (label < self.stop)
        return torch.where(inside, label - self.start, -1)


def own_rows(weight: Tensor, label_B: Tensor, shard: Shard, sizes: distributed.Sizes) -> Tensor:
    """Return the weight rows of the samples' own classes (B, …), wherever they are held; no gradient."""
    if shard.complete:
        return weight.detach()[label_B]
    row_G = shard.local(distributed.all_gather(label_B, sizes))
    here_G = (row_G >= 0).view(-1, *(1,) * (weight.ndim - 1))
    return distributed.reduce_scatter(torch.where(here_G, weight.detach()[row_G.clamp_min(0)], 0), sizes)


@torch.no_grad()
def initialise(weight: Tensor, init: float | str, shard: Shard) -> None:
    """Fill class weights as `ClassHead` says; raises `ConfigError` for an unknown start.

    A rank that holds a part of the classes draws the numbers of all, so that the weights do not depend on
    the world size.
    """
    rows = weight.shape[1:-1].numel() * shard.classes
    bounds = {"unit": 1.0, "xavier": math.sqrt(6 / (rows + weight.shape[-1]))}
    deviations = {"sface": 2 * math.sqrt(2 / shard.classes), "class_means": 0.01}
    if not isinstance(init, str):
        require(init > 0, "head.init", init, "a deviation must be greater than 0")
    elif init not in bounds | deviations:
        hint = "must be xavier, sface, unit, class_means or a deviation such as 0.01"
        raise ConfigError("head.init", init, hint)

    def draw(into: Tensor) -> Tensor:
        if init in bounds:
            return into.uniform_(-bounds[init], bounds[init])
        return into.normal_(0, deviations[init] if isinstance(init, str) else init)

    if shard.complete:
        draw(weight)
    for start in () if shard.complete else range(0, shard.classes, _CLASSES_PER_DRAW):
        block = draw(weight.new_empty(min(_CLASSES_PER_DRAW, shard.classes - start), *weight.shape[1:]))
        first, end = max(start, shard.start), min(start + len(block), shard.stop)
        if first < end:
            weight[first - shard.start : end - shard.start] = block[first - start : end - start]
    if init == "unit":
        weight /= torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
