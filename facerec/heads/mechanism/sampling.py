"""Rows of the class weights sampled anew each step (Partial FC), and an optimizer's step over them alone.

An et al. 2021, "Partial FC", arXiv 2010.05222. The gradient of the class weights has the sampled rows alone;
the other rows are touched neither by it nor by weight decay nor by momentum, which waits until they are drawn
again.

Shapes: G samples of all ranks, R rows of this rank, K sampled ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def sample_rows(row_G: Tensor, rows: int, rate: float) -> tuple[Tensor, Tensor]:
    """Choose rows for a step: all that are some sample's own class, filled up at random without replacement.

    Their number does not depend on the labels: rate·R, or G where that is more. Every set of other rows is as
    likely. Drawn from torch's generator of the device, so that a seed repeats them: on the CPU by rejection
    (see `_with_random_others`), elsewhere as the rows of the largest random numbers, for which the host
    need not wait.

    Args:
        row_G: rows of the samples' own classes, −1 for those of other ranks.
        rows: R, the number to choose from.
        rate: fraction to take, in (0, 1).

    Returns:
        The chosen rows (K), ascending, and where among them each sample's own class is (G), −1 where it is on
        another rank.
    """
    wanted = min(rows, max(math.ceil(rate * rows), len(row_G)))
    if row_G.device.type == "cpu":
        own_R = torch.zeros(rows, dtype=torch.bool)
        own_R[row_G[row_G >= 0]] = True
        chosen_K = _with_random_others(own_R, wanted).nonzero()[:, 0]
    else:
        chance_R = torch.rand(rows + 1, device=row_G.device)
        chance_R[row_G] = 2.0  # −1 is the entry behind the last row
        chosen_K = chance_R[:rows].topk(wanted, sorted=False).indices.sort().values
    return chosen_K, torch.where(row_G < 0, -1, torch.searchsorted(chosen_K, row_G))


def _with_random_others(own_R: Tensor, wanted: int) -> Tensor:
    """Return a mask of `wanted` rows: the own ones, and others drawn one by one, those drawn before again.

    Where more than half of the others are wanted, those left out are drawn instead.
    """
    own, rows = int(np.count_nonzero(own_R)), len(own_R)  # NumPy counts ten times as fast as torch
    if 2 * (wanted - own) > rows - own:
        return ~_with_random_others(own_R, own + rows - wanted) | own_R
    taken_R = own_R.clone()
    marks_R = taken_R.numpy()  # of the same memory, marked six times as fast
    while missing := wanted - int(np.count_nonzero(marks_R)):
        marks_R[torch.randint(rows, (missing,)).numpy()] = True
    return taken_R


def take_rows(weight: Tensor, row_K: Tensor) -> Tensor:
    """Return the rows `row_K` (ascending, unique) of a tensor; its gradient is sparse and has just these."""
    taken: Tensor = _TakeRows.apply(weight, row_K)
    return taken


class _TakeRows(torch.autograd.Function):
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


@contextlib.contextmanager
def updating_sampled_rows(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let an optimizer step see each parameter with a sparse gradient as the rows of that gradient.

    Works for every optimizer that keeps its state (momentum, Adam's moments) per element.
    """
    taken: list[tuple[dict[str, Any], int, nn.Parameter, nn.Parameter, Tensor]] = []
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            if parameter.grad is None or not parameter.grad.is_sparse:
                continue
            gradient = parameter.grad.coalesce()  # adds up what several batches give the same row
            row_K = gradient.indices()[0]
            rows = nn.Parameter(parameter.detach()[row_K])
            rows.grad = gradient.values()
            if state := optimizer.state.get(parameter, {}):
                optimizer.state[rows] = {
                    name: value[row_K] if _is_per_element(value, parameter) else value
                    for name, value in state.items()
                }
            group["params"][index] = rows
            taken.append((group, index, parameter, rows, row_K))
    try:
        yield
    finally:
        with torch.no_grad():
            for group, index, parameter, rows, row_K in taken:
                group["params"][index] = parameter
                parameter[row_K] = rows
                state = optimizer.state[parameter]
                for name, value in optimizer.state.pop(rows, {}).items():
                    if not _is_per_element(value, rows):
                        state[name] = value
                        continue
                    if not isinstance(state.get(name), Tensor):  # that of the other rows starts at zero
                        state[name] = torch.zeros_like(parameter)
                    state[name][row_K] = value


def _is_per_element(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
