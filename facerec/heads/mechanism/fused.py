"""The elementwise work on a block of products in one pass forward and one backward, by `torch.compile`.

On a GPU a block's products are read from its memory once for all of it, and not once per operation. The eager
code in `class_sums` is the reference. Needs products that are cosines (unit rows, no bias) and a `Term` of
plain elementwise operations; `Elementwise` calls autograd, which cannot be traced.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from facerec.heads.mechanism.terms import Term


class Running(NamedTuple):
    """What the blocks so far add up to; B numbers each.

    Attributes:
        largest_B: largest summand, of a log-sum-exp; else −inf.
        sum_B: sum of the summands, of a log-sum-exp that of exp(summand − largest).
        hardest_B: largest cosine of another class.
        mean_B: sum of all cosines.
    """

    largest_B: Tensor
    sum_B: Tensor
    hardest_B: Tensor
    mean_B: Tensor


def add_block(
    term: Term, product_KB: Tensor, row_B: Tensor, running: Running
) -> tuple[Running, tuple[Tensor, ...]]:
    """Add a block of cosines, but for each sample's own class, the row `row_B` of the block if any.

    Returns:
        the sums, and those of `Term.extra` over this block alone.
    """
    own_KB = torch.arange(len(product_KB), device=product_KB.device)[:, None] == row_B
    value_KB = term.value(product_KB)
    if term.reduction == "logsumexp":
        value_KB = torch.where(own_KB, -torch.inf, value_KB)
        largest_B = torch.maximum(running.largest_B, value_KB.amax(0))
        shift_B = torch.where(largest_B.isinf(), 0.0, largest_B)
        before_B = running.sum_B * (running.largest_B - shift_B).exp()
        sum_B = before_B + (value_KB - shift_B).exp().sum(0)
    else:
        largest_B, sum_B = running.largest_B, running.sum_B + torch.where(own_KB, 0.0, value_KB).sum(0)
    hardest_B = torch.maximum(running.hardest_B, torch.where(own_KB, -torch.inf, product_KB).amax(0))
    extra = tuple(torch.where(own_KB, 0.0, one_KB).sum(0) for one_KB in term.extra(product_KB))
    return Running(largest_B, sum_B, hardest_B, running.mean_B + product_KB.sum(0)), extra


def gradient(
    term: Term,
    product_KB: Tensor,
    row_B: Tensor,
    others_B: Tensor,
    grad_others_B: Tensor,
    grad_target_B: Tensor,
) -> Tensor:
    """Return the gradient of a block's products, given the samples' sums over all other classes."""
    own_KB = torch.arange(len(product_KB), device=product_KB.device)[:, None] == row_B
    grad_KB = term.slope(product_KB) * grad_others_B
    if term.reduction == "logsumexp":
        grad_KB = grad_KB * (term.value(product_KB) - others_B).exp()
    return torch.where(own_KB, grad_target_B, grad_KB)


@functools.cache
def compiled(function: Any) -> Any:
    """Return `function` compiled for the shapes it meets, which are those of a full block and of the last."""
    return torch.compile(function, dynamic=False)
