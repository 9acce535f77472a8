"""Class weights that are too many for one process: rows shared out over processes, and rows sampled anew
each step (Partial FC).

Each process holds a range of the classes. The embeddings of all processes come together in each, every
process walks over its own classes, and what remains of a softmax is joined by small reductions of B numbers
(see `class_sums`). An et al. 2021, "Partial FC", arXiv 2010.05222, and 2022, "Killing Two Birds with One
Stone", arXiv 2203.15565.

Shapes: B samples of this process, G of all processes, R rows (classes) of this process, K sampled ones.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from facerec import distributed


class Shard(NamedTuple):
    """The classes start … stop−1 of `classes`, held by this process; the whole where `whole` is true.

    The division is that of `torch.chunk` and DTensor: every process takes ⌈C/processes⌉ classes, the last one
    the rest.
    """

    start: int
    stop: int
    classes: int

    @classmethod
    def of(cls, classes: int, rank: int = 0, world_size: int = 1) -> Shard:
        """The share of one process."""
        size = -(-classes // world_size)
        return cls(min(rank * size, classes), min((rank + 1) * size, classes), classes)

    @property
    def rows(self) -> int:
        """How many classes are here."""
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        """Whether all classes are here."""
        return self.rows == self.classes

    def local(self, label: Tensor) -> Tensor:
        """Labels as rows of this process, −1 for those of others."""
        inside = (label >= self.start) & (label < self.stop)
        return torch.where(inside, label - self.start, -1)


def shardable(classes: int, world_size: int) -> bool:
    """Whether every process would get at least one class."""
    last = Shard.of(classes, world_size - 1, world_size)
    return last.stop > last.start


def own_rows(weight: Tensor, label_B: Tensor, shard: Shard, sizes: distributed.Sizes) -> Tensor:
    """The weight rows of the samples' own classes (B, …), wherever they are held; no gradient."""
    if shard.whole:
        return weight.detach()[label_B]
    row_G = shard.local(distributed.all_gather(label_B, sizes))
    here_G = (row_G >= 0).view(-1, *(1,) * (weight.ndim - 1))
    return distributed.reduce_scatter(torch.where(here_G, weight.detach()[row_G.clamp_min(0)], 0), sizes)


@torch.no_grad()
def sample_rows(row_G: Tensor, rows: int, rate: float) -> tuple[Tensor, Tensor]:
    """Choose rows for a step: all that are some sample's own class, filled up at random.

    Their number does not depend on the labels, so that the host need not wait for them: rate·R, or G where
    that is more.

    Args:
        row_G: rows of the samples' own classes, −1 for those of other processes.
        rows: R, how many there are to choose from.
        rate: share to take, in (0, 1).

    Returns:
        The chosen rows (K), ascending, and where among them each sample's own class is (G), −1 where it is in
        another process.
    """
    wanted = min(rows, max(math.ceil(rate * rows), len(row_G)))
    chance_R = torch.rand(rows + 1, device=row_G.device)
    chance_R[row_G] = 2.0  # −1 is the place behind the last row
    chosen_K = chance_R[:rows].topk(wanted, sorted=False).indices.sort().values
    place_R = torch.full((rows + 1,), -1, dtype=torch.int64, device=row_G.device)
    place_R[chosen_K] = torch.arange(wanted, device=row_G.device)
    return chosen_K, place_R[row_G]


def take_rows(weight: Tensor, row_K: Tensor) -> Tensor:
    """The rows `row_K` (ascending, each once) of a tensor; its gradient is sparse and has just these.

    So neither the gradient nor the optimizer's step (see `facerec.training.sampled_rows`) touches the others.
    """
    taken: Tensor = _Taken.apply(weight, row_K)
    return taken


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, row_K: Tensor) -> Tensor:
        ctx.save_for_backward(row_K)
        ctx.shape = weight.shape
        return weight.index_select(0, row_K)

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor, None]:
        (row_K,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(
            row_K[None], grad_K, ctx.shape, is_coalesced=True, check_invariants=False
        ), None
