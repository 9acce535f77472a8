"""Sums over all classes, walked block by block, with a hand-written backward: the mechanism under every head.

A head's loss needs, of the C cosines of a sample, only the target's and one sum over the others. So the B×C
logits are never made: the weight rows are taken a block at a time, and what remains are B numbers per block.
Where the classes are sharded, each rank walks over its own with the samples of all, and three reductions of a
few numbers per sample join what they found (see `sharding`).

Shapes: B samples (where classes are sharded, those of all ranks, unless said otherwise), C classes of this
rank, D embedding size, K classes of one block, S sub-centres per class (where a head has them). Blocks are
held as K×B, so that whatever belongs to a sample broadcasts along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facerec import distributed
from facerec.heads.mechanism import fused as fusion
from facerec.heads.mechanism.products import Format, multiply, resolve_format, tensor_cores
from facerec.heads.mechanism.terms import Elementwise, Filtered, RunningSum, Term

Memory = Literal["auto", "keep", "recompute"]

_KEPT_ON_CPU = 2**28  # bytes; recomputing takes a fifth longer


class ClassSums(NamedTuple):
    """Numbers that a head builds its loss from, one per sample; the first three carry gradients.

    Attributes:
        target_B: product of the sample with its own class (cosine where both sides are normalised).
        others_B: the `Term` summed over all other classes; −inf for a log-sum-exp over none.
        target_norm_B: ‖W_y‖ of the sample's class, before any normalisation.
        cosine_B: cosine with the own class, whatever the products are.
        hardest_B: largest cosine among the other classes; −inf where there are none.
        mean_B: mean cosine of the other classes; NaN where there are none.
        extra: the sums of `Term.extra`.
        filtered_B: number of other classes left out of the sum; None where none can be.
    """

    target_B: Tensor
    others_B: Tensor
    target_norm_B: Tensor
    cosine_B: Tensor
    hardest_B: Tensor
    mean_B: Tensor
    extra: tuple[Tensor, ...]
    filtered_B: Tensor | None = None


class Walk(NamedTuple):
    """How the classes are walked over.

    Attributes:
        normalise: divide each weight row by its norm first; the gradient goes through the division.
        memory: keep the products (nothing more) for the backward pass, multiply again instead, or ``auto``.
        block_size: classes per block; by default as many as fit a cache-sized block.
        products: number format of the matrix products, see `products.resolve_format`; all else is fp32.
        filter_above: leave other classes with a greater cosine out of `others_B` and `extra`; None: none.
        fused: compile the elementwise work on a block into one pass, where the products are cosines.
        sharded: the ranks hold different classes and the samples of all; each returns the numbers of its own
            samples. The gradient to weight and bias is then that of the mean of all ranks' losses, the one to
            the query that of this rank's classes.
        sizes: the number of samples of each rank, where classes are sharded.
    """

    normalise: bool = True
    memory: Memory = "auto"
    block_size: int | None = None
    products: Format = "auto"
    filter_above: float | None = None
    fused: bool = False
    sharded: bool = False
    sizes: distributed.Sizes = None

    def of(self, query_BD: Tensor, weight: Tensor, bias_C: Tensor | None) -> Walk:
        """Return the walk over these with nothing left to choose."""
        batch, classes, device = len(query_BD), len(weight), query_BD.device
        row_bytes = batch * query_BD.element_size()  # of the products with one row of weights
        keep = row_bytes * classes < kept_bytes(device) if self.memory == "auto" else self.memory == "keep"
        fitting = block_bytes(device) // (row_bytes * weight[0].numel() // weight.shape[-1])
        return self._replace(
            memory="keep" if keep else "recompute",
            block_size=min(self.block_size or max(256, fitting), classes),
            products=resolve_format(self.products, query_BD),
            fused=self.fused and self.normalise and bias_C is None,
        )

    def blocks(self, classes: int) -> Iterator[slice]:
        """Yield the classes of each block."""
        size = self.block_size or classes
        for start in range(0, classes, size):
            yield slice(start, min(start + size, classes))


def class_sums(
    query_BD: Tensor,
    weight: Tensor,
    row_B: Tensor,
    term: Callable[[Tensor], Term],
    bias_C: Tensor | None,
    walk: Walk,
) -> ClassSums:
    """Return the products of each sample with all classes, reduced to the target's and a sum over the others.

    Args:
        query_BD: what is multiplied with the class weights (normalised embeddings for cosine heads).
        weight: class weights (C, D), or (C, S, D) with S sub-centres, of whose products the largest counts.
        row_B: target class of each sample, int64 in [0, C); −1 for a class of another rank.
        term: makes the `Term` of this step, given the targets' products (B, no gradient).
        bias_C: added to the products, where the head has one.
    """
    if weight.ndim == 3 and not (walk.normalise and bias_C is None):
        raise ValueError("sub-centres need normalised weights and no bias")
    target_B, others_B, norm_B, cosine_B, hardest_B, mean_B, *extra = _ClassSums.apply(
        query_BD, weight, bias_C, row_B, term, walk.of(query_BD, weight, bias_C)
    )
    filtered_B = None if walk.filter_above is None else extra.pop()
    return ClassSums(target_B, others_B, norm_B, cosine_B, hardest_B, mean_B, tuple(extra), filtered_B)


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: Tensor,
        weight: Tensor,
        bias_C: Tensor | None,
        row_B: Tensor,
        make_term: Callable[[Tensor], Term],
        walk: Walk,
    ) -> tuple[Tensor, ...]:
        products = _Products(query_BD, weight, bias_C, 1.0 / _norm(weight.flatten(0, -2)), walk)
        winner_B, *own = products.own(row_B)
        mean_B = -own[1]  # so that adding up all classes leaves the others
        if walk.sharded:  # a sample's own class is held by one of the ranks
            own = list(distributed.all_reduce_sum(torch.stack(own)))
        target_B, cosine_B, norm_B = own
        term = make_term(target_B)
        fused = walk.fused and not isinstance(term, Elementwise)

        total = RunningSum(term.reduction, target_B)
        extra: list[Tensor] = []
        hardest_B = torch.full_like(target_B, -torch.inf)
        kept: list[Tensor | None] = []
        for block in walk.blocks(len(weight)):
            with tensor_cores(walk.products):
                product_KB, winner_KB = products.of(block)
            if walk.memory == "keep":
                kept += product_KB, winner_KB
            counted = products.filtered(term, block)
            if fused:
                running = fusion.Running(total.largest_B, total.sum_B, hardest_B, mean_B)
                add_block = fusion.compiled(fusion.add_block)
                running, sums = add_block(counted, product_KB, row_B - block.start, running)
                total.largest_B, total.sum_B, hardest_B, mean_B = running
            else:
                total.add(_fill_own(counted.value(product_KB), row_B, block, total.neutral))
                sums = [_fill_own(one_KB, row_B, block, 0.0).sum(0) for one_KB in counted.extra(product_KB)]
                cosine_KB = products.cosine(product_KB, block)
                mean_B += cosine_KB.sum(0)
                _fill_own(cosine_KB, row_B, block, -torch.inf)
                hardest_B = torch.maximum(hardest_B, cosine_KB.amax(0))
                if cosine_KB is product_KB:  # the products themselves were covered, not a copy of them
                    _fill_own(product_KB, row_B, block, target_B)
            extra = [a + b for a, b in zip(extra, sums, strict=True)] if extra else list(sums)
        classes_B = torch.full_like(mean_B, len(weight))
        if walk.sharded:
            hardest_B, mean_B, classes_B, *extra = total.all_reduce(hardest_B, mean_B, classes_B, *extra)
        others_B = total.result()

        length_B = _norm(query_BD)  # so far the statistics were of x·ŵ
        mean_B = torch.where(classes_B > 1, mean_B / (classes_B - 1), torch.nan)
        statistics = (cosine_B / length_B, hardest_B / length_B, mean_B / length_B)
        per_sample = (row_B, winner_B, others_B)
        ctx.save_for_backward(query_BD, weight, bias_C, products.inverse_norm_R, *per_sample, *kept)
        ctx.term, ctx.walk, ctx.fused = term, walk, fused
        ctx.set_materialize_grads(False)
        returned = (target_B, others_B, norm_B, *statistics, *extra)
        if walk.sharded:
            returned = tuple(distributed.local_samples(x_B, walk.sizes).clone() for x_B in returned)
        ctx.mark_non_differentiable(*returned[3:])
        return returned

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_target_B: Tensor | None,
        grad_others_B: Tensor | None,
        grad_norm_B: Tensor | None,
        *_: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        query_BD, weight, bias_C, inverse_norm_R, row_B, winner_B, others_B, *kept = ctx.saved_tensors
        walk: Walk = ctx.walk
        own_B = distributed.local_samples(others_B, walk.sizes) if walk.sharded else others_B
        grad_target_B = torch.zeros_like(own_B) if grad_target_B is None else grad_target_B
        grad_others_B = torch.zeros_like(own_B) if grad_others_B is None else grad_others_B
        if walk.sharded:
            grad_norm_B = torch.zeros_like(own_B) if grad_norm_B is None else grad_norm_B
            grads_B3 = torch.stack((grad_target_B, grad_others_B, grad_norm_B), 1)
            grad_target_B, grad_others_B, grad_norm_B = distributed.all_gather(grads_B3, walk.sizes).unbind(1)
        finite_B = torch.where(others_B.isinf(), 0.0, others_B)  # no other class: nothing flows, not NaN
        with torch.autocast(query_BD.device.type, enabled=False), tensor_cores(walk.products):
            products = _Products(query_BD, weight, bias_C, inverse_norm_R, walk)
            gradients = _Gradients(products, distributed.world_size() if walk.sharded else 1)
            for number, block in enumerate(walk.blocks(len(weight))):
                product_KB, winner_KB = kept[2 * number : 2 * number + 2] if kept else products.of(block)
                term = products.filtered(ctx.term, block)
                if ctx.fused:
                    rows_B = row_B - block.start
                    grads = (finite_B, grad_others_B, grad_target_B)
                    grad_KB = fusion.compiled(fusion.gradient)(term, product_KB, rows_B, *grads)
                else:
                    slope_KB = term.slope(product_KB) * grad_others_B
                    if term.reduction == "logsumexp":
                        softmax_KB = term.value(product_KB).sub_(finite_B).exp_()  # over the others
                        grad_KB = softmax_KB.mul_(slope_KB)
                    else:
                        grad_KB = torch.as_tensor(slope_KB).expand_as(product_KB).contiguous()
                    _fill_own(grad_KB, row_B, block, grad_target_B)
                gradients.add(grad_KB, winner_KB, block)
            if grad_norm_B is not None:
                gradients.add_norm(grad_norm_B, winner_B)
        weight_grad = gradients.weight_RD.view_as(weight)
        return gradients.query_BD, weight_grad, gradients.bias_C, None, None, None


class _Products:
    """Products of a batch with one block of classes at a time; R rows of weights, S of them per class."""

    def __init__(
        self, query_BD: Tensor, weight: Tensor, bias_C: Tensor | None, inverse_norm_R: Tensor, walk: Walk
    ) -> None:
        self.query_BD, self.bias_C = query_BD, bias_C
        self.normalise, self.format = walk.normalise, walk.products
        self.weight_RD, self.inverse_norm_R = weight.flatten(0, -2), inverse_norm_R
        self.centres = len(self.weight_RD) // len(weight)
        filter_above = walk.filter_above
        self.limit_B = None if filter_above is None else filter_above * _norm(query_BD)  # of x·ŵ

    def rows(self, block: slice) -> slice:
        """Return the rows of weights that belong to a block of classes."""
        return slice(block.start * self.centres, block.stop * self.centres)

    def of(self, block: slice) -> tuple[Tensor, Tensor | None]:
        """Return the products with a block, and the sub-centre that won each, where there are several."""
        rows = self.rows(block)
        product_RB = multiply(self.weight_RD[rows], self.query_BD.t(), self.format)
        if self.normalise:
            product_RB.mul_(self.inverse_norm_R[rows, None])
        if self.bias_C is not None:
            product_RB.add_(self.bias_C[rows, None])
        if self.centres == 1:
            return product_RB, None
        product_KB, winner_KB = product_RB.view(-1, self.centres, len(self.query_BD)).max(1)
        return product_KB, winner_KB.to(torch.uint8)

    def own(self, row_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return each sample's row of weights, the product with it, x·ŵ of it, and the row's norm.

        For a class of another rank the row is −1 and the numbers are 0.
        """
        here_B = row_B >= 0
        row_B = row_B.clamp_min(0)
        row_BS = row_B[:, None] * self.centres + torch.arange(self.centres, device=row_B.device)
        raw_BS = (self.weight_RD[row_BS] * self.query_BD[:, None]).sum(2)
        unit_B, winner_B = (raw_BS * self.inverse_norm_R[row_BS]).max(1)
        winner_B, raw_B = (x.gather(1, winner_B[:, None])[:, 0] for x in (row_BS, raw_BS))
        product_B = unit_B if self.normalise else raw_B
        if self.bias_C is not None:
            product_B = product_B + self.bias_C[row_B]
        numbers = (product_B, unit_B, 1.0 / self.inverse_norm_R[winner_B])
        product_B, unit_B, norm_B = (torch.where(here_B, number_B, 0.0) for number_B in numbers)
        return torch.where(here_B, winner_B, -1), product_B, unit_B, norm_B

    def cosine(self, product_KB: Tensor, block: slice) -> Tensor:
        """Return products with unit rows and without bias: the same tensor if they are that already."""
        if self.bias_C is not None:
            product_KB = product_KB - self.bias_C[block, None]
        return product_KB if self.normalise else product_KB * self.inverse_norm_R[block, None]

    def filtered(self, term: Term, block: slice) -> Term:
        """Return `term` without the classes of a block whose cosine is too large, if any can be."""
        if self.limit_B is None:
            return term
        limit = self.limit_B if self.normalise else self.limit_B / self.inverse_norm_R[block, None]
        return Filtered(term, limit if self.bias_C is None else limit + self.bias_C[block, None])


class _Gradients:
    """Gradients to query, and as a mean over `ranks` to weight and bias, gathered one block at a time."""

    def __init__(self, products: _Products, ranks: int = 1) -> None:
        self.products, self.ranks = products, ranks
        self.query_BD = torch.zeros_like(products.query_BD)
        self.scaled_query_BD = products.query_BD if ranks == 1 else products.query_BD / ranks
        self.weight_RD = torch.empty_like(products.weight_RD)
        self.bias_C = None if products.bias_C is None else torch.empty_like(products.bias_C)

    def add(self, grad_KB: Tensor, winner_KB: Tensor | None, block: slice) -> None:
        """Backpropagate the gradient of a block's products to query, weight, bias; overwrites `grad_KB`."""
        rows = self.products.rows(block)
        weight_RD, into_RD = self.products.weight_RD[rows], self.weight_RD[rows]
        if self.bias_C is not None:
            torch.sum(grad_KB, 1, out=self.bias_C[rows]).div_(self.ranks)
        if winner_KB is not None:  # only the sub-centre that won is moved
            grad_KSB = grad_KB.new_zeros(len(grad_KB), self.products.centres, grad_KB.shape[1])
            grad_KB = grad_KSB.scatter_(1, winner_KB[:, None].long(), grad_KB[:, None]).flatten(0, 1)
        if self.products.normalise:
            inverse_norm_R1 = self.products.inverse_norm_R[rows, None]
            grad_KB.mul_(inverse_norm_R1)
            multiply(grad_KB, self.scaled_query_BD, self.products.format, into_RD)
            # The component along w changes only its norm, which the products are divided by.
            along_R1 = torch.linalg.vecdot(into_RD, weight_RD)[:, None]
            into_RD.addcmul_(weight_RD, along_R1 * inverse_norm_R1.square(), value=-1.0)
        else:
            multiply(grad_KB, self.scaled_query_BD, self.products.format, into_RD)
        if self.products.format == "bf16":
            self.query_BD += multiply(grad_KB.t(), weight_RD, "bf16")
        else:
            self.query_BD.addmm_(grad_KB.t(), weight_RD)

    def add_norm(self, grad_B: Tensor, row_B: Tensor) -> None:
        """Backpropagate the gradient of ‖W_y‖ to the samples' rows on this rank (−1: on another)."""
        grad_B = torch.where(row_B >= 0, grad_B, 0.0) / self.ranks
        row_B = row_B.clamp_min(0)
        scale_B = self.products.inverse_norm_R[row_B] * grad_B
        self.weight_RD.index_add_(0, row_B, self.products.weight_RD[row_B] * scale_B[:, None])


def _norm(rows_ND: Tensor) -> Tensor:
    norm_N = torch.linalg.vector_norm(rows_ND, dim=1)
    return norm_N.clamp_min(torch.finfo(norm_N.dtype).tiny ** 0.5)


def _fill_own(block_KB: Tensor, own_B: Tensor, block: slice, value: Tensor | float) -> Tensor:
    """Write `value` where a class of this block is the sample's own: B numbers, no wait for the GPU."""
    row_B = own_B - block.start
    inside_B = (row_B >= 0) & (row_B < len(block_KB))
    row_1B = row_B.clamp(0, len(block_KB) - 1)[None]
    return block_KB.scatter_(0, row_1B, torch.where(inside_B, value, block_KB.gather(0, row_1B)[0])[None])


def block_bytes(device: torch.device) -> int:
    """Return the default size of a block: a few MB on a CPU, to stay in cache; large products on a GPU."""
    return (4 if device.type == "cpu" else 256) * 2**20


def kept_bytes(device: torch.device) -> int:
    """Return the bytes of products below which ``memory="auto"`` keeps them: a small part of the memory.

    Of a GPU's total memory, not what is free, so that every step chooses alike, and without waiting.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory // 8)
    return _KEPT_ON_CPU
