"""The terms of a sample's sum: what each class that is not its own adds to it.

Shapes: B samples, K classes of one block; blocks are K×B, so that whatever belongs to a sample broadcasts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

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
