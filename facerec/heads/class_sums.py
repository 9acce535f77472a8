"""Sums over all classes, walked block by block, with a hand-written backward: the mechanism under every head.

A head's loss needs, of the C cosines of a sample, only the target's and one sum over the others. So the
B×C logits are never needed whole: the weight rows are taken a block at a time, and what remains are B numbers
each. `memory="keep"` keeps the blocks of products for the backward pass (the logits themselves, nothing
more); ``"recompute"`` multiplies again instead and keeps nothing.

Shapes: B batch, C classes, D embedding size, K classes of one block. Blocks are held as K×B, so that whatever
belongs to a sample broadcasts along the last axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Memory = Literal["auto", "keep", "recompute"]


class Term(ABC):
    """What each non-target class adds to a sample's sum, as an elementwise function of its product x·w.

    Attributes:
        reduction: ``"logsumexp"`` (softmax family) or ``"sum"``.
    """

    reduction: Literal["logsumexp", "sum"] = "logsumexp"

    @abstractmethod
    def value(self, product_KB: Tensor) -> Tensor:
        """The summand of every product (a new tensor)."""

    @abstractmethod
    def slope(self, product_KB: Tensor) -> Tensor | float:
        """Derivative of `value`, elementwise; a number where it is constant."""


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
        function: from K×B products to K×B summands; what it detaches counts as constant.
        reduction: how the summands are joined.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], reduction: Literal["logsumexp", "sum"] = "logsumexp"
    ) -> None:
        self.function = function
        self.reduction = reduction

    def value(self, product_KB: Tensor) -> Tensor:
        return self.function(product_KB)

    def slope(self, product_KB: Tensor) -> Tensor:
        with torch.enable_grad():
            product_KB = product_KB.detach().requires_grad_()
            (slope_KB,) = torch.autograd.grad(self.function(product_KB).sum(), product_KB)
        return slope_KB


class ClassSums(NamedTuple):
    """What a head gets to build its loss from; one number a sample each.

    Attributes:
        target_B: product of the sample with its own class (cosine where both sides are normalised).
        others_B: the `Term` summed over all other classes; −inf for a log-sum-exp over none.
        target_norm_B: ‖W_y‖ of the sample's class, before any normalisation.
        cosine_B: cosine with the own class, whatever the products are (no gradient).
        hardest_B: largest cosine among the other classes (no gradient; −inf where there are none).
        mean_B: mean cosine of the other classes (no gradient; NaN where there are none).
    """

    target_B: Tensor
    others_B: Tensor
    target_norm_B: Tensor
    cosine_B: Tensor
    hardest_B: Tensor
    mean_B: Tensor


def class_sums(
    query_BD: Tensor,
    weight_CD: Tensor,
    label_B: Tensor,
    term: Callable[[Tensor], Term],
    *,
    bias_C: Tensor | None = None,
    normalise_weight: bool = True,
    memory: Memory = "auto",
    block_size: int | None = None,
) -> ClassSums:
    """Products of each sample with all classes, reduced to the target's and a sum over the others.

    Args:
        query_BD: what is multiplied with the class weights (normalised embeddings for cosine heads).
        weight_CD: class weights as they are stored.
        label_B: target class of each sample, int64 in [0, C).
        term: makes the `Term` of this step, given the targets' products (B, no gradient).
        bias_C: added to the products, where the head has one.
        normalise_weight: divide each weight row by its norm first; the gradient goes through the division.
        memory: keep the products for the backward pass, recompute them, or decide by free memory.
        block_size: classes a block; by default as many as fit a cache-sized block.

    Returns:
        `ClassSums`; `target_B`, `others_B` and `target_norm_B` carry gradients to query, weight and bias.
    """
    batch, classes = len(query_BD), len(weight_CD)
    block_size = block_size or _block_size(batch, query_BD)
    keep = memory == "keep" or (
        memory == "auto" and _products_fit(batch * classes * query_BD.element_size(), query_BD)
    )
    outputs = _ClassSums.apply(
        query_BD, weight_CD, bias_C, label_B, term, normalise_weight, keep, min(block_size, classes)
    )
    return ClassSums(*outputs)


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor | None,
        label_B: Tensor,
        make_term: Callable[[Tensor], Term],
        normalise: bool,
        keep: bool,
        block_size: int,
    ) -> tuple[Tensor, ...]:
        own_BD = weight_CD[label_B]
        own_norm_B = _norm(own_BD)
        target_B = (query_BD * own_BD).sum(1)
        if normalise:
            target_B = target_B / own_norm_B
        if bias_C is not None:
            target_B = target_B + bias_C[label_B]
        inverse_norm_C = 1.0 / _norm(weight_CD)
        term = make_term(target_B)

        total = _RunningSum(term.reduction, target_B)
        hardest_B = torch.full_like(target_B, -torch.inf)
        cosine_sum_B = torch.zeros_like(target_B)
        kept = []
        for rows in _blocks(len(weight_CD), block_size):
            product_KB = _product(query_BD, weight_CD, bias_C, inverse_norm_C if normalise else None, rows)
            if keep:
                kept.append(product_KB)
            total.add(_fill_own(term.value(product_KB), label_B, rows.start, total.neutral))
            cosine_KB = product_KB if normalise else _cosines_of(product_KB, bias_C, inverse_norm_C, rows)
            cosine_sum_B += cosine_KB.sum(0)
            _fill_own(cosine_KB, label_B, rows.start, -torch.inf)
            hardest_B = torch.maximum(hardest_B, cosine_KB.amax(0))
            if normalise:  # the products themselves were covered, not a copy of them
                _fill_own(product_KB, label_B, rows.start, target_B)
        others_B = total.result()

        query_norm_B = _norm(query_BD)
        own_cosine_B = (query_BD * own_BD).sum(1) / own_norm_B
        mean_B = (cosine_sum_B - own_cosine_B) / (len(weight_CD) - 1 or torch.nan) / query_norm_B
        cosine_B, hardest_B = own_cosine_B / query_norm_B, hardest_B / query_norm_B

        ctx.save_for_backward(query_BD, weight_CD, bias_C, label_B, inverse_norm_C, others_B, *kept)
        ctx.term, ctx.normalise, ctx.block_size, ctx.kept = term, normalise, block_size, keep
        ctx.mark_non_differentiable(cosine_B, hardest_B, mean_B)
        return target_B, others_B, own_norm_B, cosine_B, hardest_B, mean_B

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_target_B: Tensor, grad_others_B: Tensor, grad_norm_B: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        query_BD, weight_CD, bias_C, label_B, inverse_norm_C, others_B, *kept = ctx.saved_tensors
        term: Term = ctx.term
        divisor_C = inverse_norm_C if ctx.normalise else None
        finite_B = torch.where(others_B.isinf(), 0.0, others_B)  # no other class: nothing flows, not NaN
        grad_query_BD = torch.zeros_like(query_BD)
        grad_weight_CD = torch.empty_like(weight_CD)
        grad_bias_C = None if bias_C is None else torch.empty_like(bias_C)
        for number, rows in enumerate(_blocks(len(weight_CD), ctx.block_size)):
            weight_KD, inverse_norm_K = weight_CD[rows], inverse_norm_C[rows, None]
            if ctx.kept:
                product_KB = kept[number]
            else:
                product_KB = _product(query_BD, weight_CD, bias_C, divisor_C, rows)
            slope_KB = term.slope(product_KB)
            if term.reduction == "logsumexp":
                share_KB = term.value(product_KB).sub_(finite_B).exp_()  # the others' softmax
                grad_KB = share_KB.mul_(slope_KB * grad_others_B)
            else:
                grad_KB = torch.as_tensor(slope_KB * grad_others_B).expand_as(product_KB).contiguous()
            _fill_own(grad_KB, label_B, rows.start, grad_target_B)
            if grad_bias_C is not None:
                grad_bias_C[rows] = grad_KB.sum(1)
            if ctx.normalise:
                # d(x·w/‖w‖)/dw = x/‖w‖ − w·(x·w/‖w‖)/‖w‖²
                along_K = (grad_KB * product_KB).sum(1, keepdim=True)
                grad_KB.mul_(inverse_norm_K)
                torch.mm(grad_KB, query_BD, out=grad_weight_CD[rows])
                grad_weight_CD[rows].addcmul_(weight_KD, along_K.mul_(inverse_norm_K.square()), value=-1.0)
            else:
                torch.mm(grad_KB, query_BD, out=grad_weight_CD[rows])
            grad_query_BD.addmm_(grad_KB.t(), weight_KD)
        own_BD = weight_CD[label_B] * inverse_norm_C[label_B, None]
        grad_weight_CD.index_add_(0, label_B, own_BD * grad_norm_B[:, None])
        return grad_query_BD, grad_weight_CD, grad_bias_C, None, None, None, None, None


class _RunningSum:
    """A sum or log-sum-exp over blocks, numerically safe whatever order they come in."""

    def __init__(self, reduction: str, like_B: Tensor) -> None:
        self.log = reduction == "logsumexp"
        self.neutral = -torch.inf if self.log else 0.0
        self.largest_B = torch.full_like(like_B, -torch.inf)
        self.sum_B = torch.zeros_like(like_B)

    def add(self, summand_KB: Tensor) -> None:
        """Take in one block (which is used up)."""
        if not self.log:
            self.sum_B += summand_KB.sum(0)
            return
        largest_B = torch.maximum(self.largest_B, summand_KB.amax(0))
        shift_B = torch.where(largest_B.isinf(), 0.0, largest_B)
        self.sum_B = self.sum_B * (self.largest_B - shift_B).exp() + summand_KB.sub_(shift_B).exp_().sum(0)
        self.largest_B = largest_B

    def result(self) -> Tensor:
        """The sum so far, B numbers."""
        return self.largest_B + self.sum_B.log() if self.log else self.sum_B


def _blocks(classes: int, block_size: int) -> Iterator[slice]:
    for start in range(0, classes, block_size):
        yield slice(start, min(start + block_size, classes))


def _norm(rows_ND: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows_ND, dim=1).clamp_min(torch.finfo(rows_ND.dtype).tiny ** 0.5)


def _product(
    query_BD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, inverse_norm_C: Tensor | None, rows: slice
) -> Tensor:
    product_KB = torch.mm(weight_CD[rows], query_BD.t())
    if inverse_norm_C is not None:
        product_KB.mul_(inverse_norm_C[rows, None])
    if bias_C is not None:
        product_KB.add_(bias_C[rows, None])
    return product_KB


def _cosines_of(product_KB: Tensor, bias_C: Tensor | None, inverse_norm_C: Tensor, rows: slice) -> Tensor:
    """Products of raw weights, with the bias taken off and divided by the weights' norms."""
    if bias_C is not None:
        product_KB = product_KB - bias_C[rows, None]
    return product_KB * inverse_norm_C[rows, None]


def _fill_own(block_KB: Tensor, label_B: Tensor, start: int, value: Tensor | float) -> Tensor:
    """Write `value` where a class of this block is the sample's own. B numbers move; the host never waits."""
    local_B = label_B - start
    inside_B = (local_B >= 0) & (local_B < len(block_KB))
    row_1B = local_B.clamp(0, len(block_KB) - 1)[None]
    block_KB.scatter_(0, row_1B, torch.where(inside_B, value, block_KB.gather(0, row_1B)[0])[None])
    return block_KB


def _block_size(batch: int, like: Tensor) -> int:
    """Classes a block: a few MB on a CPU, where a block should stay in cache; large products on a GPU."""
    size = (4 if like.device.type == "cpu" else 256) * 2**20
    return max(256, size // (batch * like.element_size()))


def _products_fit(size: int, like: Tensor) -> bool:
    """Whether `size` bytes of kept products are a small part of what memory is free."""
    if like.device.type == "cuda":
        return size < torch.cuda.mem_get_info(like.device)[0] // 4
    return size < 2**30
