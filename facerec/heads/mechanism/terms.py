"""The terms of a sample's sum: what each class that is not its own adds to it, and the sum itself.

Shapes: B samples, K classes of one block; blocks are K×B, so that whatever belongs to a sample broadcasts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from facerec import distributed

Reduction = Literal["logsumexp", "sum"]


class Term(ABC):
    """The summand of each non-target class, as an elementwise function of its product x·w.

    Attributes:
        reduction: ``"logsumexp"`` (softmax family) or ``"sum"``.
    """

    reduction: Reduction = "logsumexp"

    @abstractmethod
    def value(self, product_KB: Tensor) -> Tensor:
        """Return the summand of every product (a new tensor)."""

    @abstractmethod
    def slope(self, product_KB: Tensor) -> Tensor | float:
        """Return the derivative of `value`, elementwise; a number where it is constant."""

    def extra(self, product_KB: Tensor) -> tuple[Tensor, ...]:
        """Return further summands, whose plain sums over the other classes a head wants; no gradient."""
        return ()


class Scaled(Term):
    """``s·x`` into a log-sum-exp: plain softmax over scaled cosines."""

    def __init__(self, s: float | Tensor = 1.0) -> None:
        self.s = s

    def value(self, product_KB: Tensor) -> Tensor:
        return product_KB * self.s

    def slope(self, product_KB: Tensor) -> Tensor | float:
        return self.s


class Elementwise(Term):
    """Any differentiable elementwise function; its slope is taken by autograd, one block at a time.

    Args:
        function: from K×B products to K×B summands, not in place; what it detaches counts as constant.
        reduction: how the summands are joined.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], reduction: Reduction = "logsumexp") -> None:
        self.function = function
        self.reduction = reduction

    def value(self, product_KB: Tensor) -> Tensor:
        value_KB = self.function(product_KB)
        return value_KB.clone() if value_KB is product_KB else value_KB

    def slope(self, product_KB: Tensor) -> Tensor:
        with torch.enable_grad():
            product_KB = product_KB.detach().requires_grad_()
            (slope_KB,) = torch.autograd.grad(self.function(product_KB).sum(), product_KB)
        return slope_KB


class Filtered(Term):
    """Another term without the classes whose product is above a limit: these add nothing and get no gradient.

    The last of `extra` counts them.

    Args:
        limit: largest product that stays, for each sample (B) or class and sample (K×B).
    """

    def __init__(self, term: Term, limit: Tensor) -> None:
        self.term, self.limit = term, limit
        self.reduction = term.reduction
        self.neutral = -torch.inf if term.reduction == "logsumexp" else 0.0

    def value(self, product_KB: Tensor) -> Tensor:
        return self.term.value(product_KB).masked_fill_(product_KB > self.limit, self.neutral)

    def slope(self, product_KB: Tensor) -> Tensor | float:
        slope_KB = self.term.slope(product_KB)
        if self.reduction == "logsumexp":
            return slope_KB  # it is multiplied by e^value, which is 0
        slope_KB = torch.as_tensor(slope_KB, dtype=product_KB.dtype, device=product_KB.device)
        return torch.where(product_KB > self.limit, 0.0, slope_KB)

    def extra(self, product_KB: Tensor) -> tuple[Tensor, ...]:
        above_KB = product_KB > self.limit
        others = (one_KB.masked_fill(above_KB, 0.0) for one_KB in self.term.extra(product_KB))
        return *others, above_KB.to(product_KB.dtype)


class RunningSum:
    """A sum or log-sum-exp over blocks, numerically stable in any order of them."""

    def __init__(self, reduction: Reduction, like_B: Tensor) -> None:
        self.log = reduction == "logsumexp"
        self.neutral = -torch.inf if self.log else 0.0
        self.largest_B = torch.full_like(like_B, -torch.inf)
        self.sum_B = torch.zeros_like(like_B)

    def add(self, summand_KB: Tensor) -> None:
        """Add the summands of one block, which are overwritten."""
        if not self.log:
            self.sum_B += summand_KB.sum(0)
            return
        largest_B = torch.maximum(self.largest_B, summand_KB.amax(0))
        shift_B = torch.where(largest_B.isinf(), 0.0, largest_B)
        self.sum_B = self.sum_B * (self.largest_B - shift_B).exp() + summand_KB.sub_(shift_B).exp_().sum(0)
        self.largest_B = largest_B

    def all_reduce(self, hardest_B: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
        """All-reduce this sum, and by the same two reductions `hardest_B` and `sums`, which it returns."""
        largest_B, hardest_B = distributed.all_reduce_max(torch.stack((self.largest_B, hardest_B)))
        if self.log:
            shift_B = torch.where(largest_B.isinf(), 0.0, largest_B)
            self.sum_B = self.sum_B * (self.largest_B - shift_B).exp()
        self.largest_B = largest_B
        self.sum_B, *joint = distributed.all_reduce_sum(torch.stack((self.sum_B, *sums)))
        return hardest_B, *joint

    def result(self) -> Tensor:
        """Return the sum so far, B numbers."""
        return self.largest_B + self.sum_B.log() if self.log else self.sum_B
