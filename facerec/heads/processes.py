"""What a head's running state needs of the other processes, so that it stays equal on all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, the same on each; `x` itself where there is only one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean_over_processes(x_N: Tensor) -> Tensor:
    """The mean of the elements that all processes have together, however many each has; the same on each."""
    total, count = sum_over_processes(torch.stack([x_N.sum(), torch.ones_like(x_N).sum()]))
    return total / count
