"""What every head shares: the registry, class weights, the walk over classes, and what a step reports.

Shapes: B batch, C classes, D embedding size.
"""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, NamedTuple, Required, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from facerec import distributed
from facerec.errors import ConfigError, DamagedDataError, UserError, require
from facerec.heads.mechanism.class_sums import ClassSums, Memory, class_sums
from facerec.heads.mechanism.sharding import Shard, sample_rows, shardable, take_rows
from facerec.heads.mechanism.terms import Scaled, Term
from facerec.registry import Registry

log = logging.getLogger(__name__)

HEADS = Registry("head", "facerec.heads")

_DRAWN = 4096  # classes drawn at a time; torch draws in groups of 16 numbers, which must not be cut


def create_head(name: str, *, num_classes: int, embedding_size: int = 512, **parameters: Any) -> Head:
    """A freshly initialised head by its name.

    Args:
        name: e.g. ``arcface``; see `HEADS.names()`.
        num_classes: C, how many identities there are to tell apart.
        embedding_size: D, the length of the embedding.
        parameters: the head's own (``s``, ``m``, …) and those of `HeadOptions`.

    Raises:
        facerec.errors.ConfigError: unknown head or parameter, or a value out of range.
    """
    return HEADS.create(name, parameters, num_classes=num_classes, embedding_size=embedding_size)


class HeadOutput(NamedTuple):
    """What a head returns.

    Attributes:
        loss: scalar, mean over the batch.
        statistics: what a run reports of this step; detached scalar tensors, so that nothing waits for a GPU.
    """

    loss: Tensor
    statistics: dict[str, Tensor]


class Head(nn.Module):
    """A loss over embeddings and labels; `forward(embedding_BD, label_B, sizes=None)` returns a `HeadOutput`.

    The trainer passes as `sizes` how many samples each process brings.

    Attributes:
        shard: which classes this process holds, for a head whose rows are shared out; None: all.
        sharded_parameters: names of the parameters whose first axis is that of `shard`.
    """

    shard: Shard | None = None
    sharded_parameters: tuple[str, ...] = ()

    def check_batches(self, images_C: npt.NDArray[np.int64], batch_size: int, together: int | None) -> None:
        """Raise `ConfigError` where no batch could hold what the loss compares; by default any batch does.

        Identity c has `images_C[c]` images, of which `together` share a batch; 1: unknown, None: by chance.
        """

    def after_step(self) -> None:
        """Called by the trainer after each step of the optimizer: state that counts steps moves on here."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())

    def settings(self) -> dict[str, Any]:
        """The head's parameters as they were given, for the log."""
        shown = (int, float, str, bool)
        return {
            k: v for k, v in vars(self).items() if isinstance(v, shown) and k != "training" and k[0] != "_"
        }


class Samples(NamedTuple):
    """A batch as a head sees it: embeddings (B, D), labels (B), the embeddings' norms (B).

    `sizes` is how many samples each process brings, where classes are shared out over processes; None: all of
    them as many as this one.
    """

    embedding_BD: Tensor
    label_B: Tensor
    norm_B: Tensor
    sizes: distributed.Sizes = None

    def of_all_processes(self) -> Samples:
        """The samples of all processes one after the other, in every process; gradients find back."""
        embedding_GD = distributed.Gather.apply(self.embedding_BD, self.sizes)
        label_G = distributed.all_gather(self.label_B, self.sizes)
        return Samples(embedding_GD, label_G, torch.linalg.vector_norm(embedding_GD, dim=1), self.sizes)


class HeadOptions(TypedDict, total=False):
    """What every head with class weights takes, of which the first two are required.

    Attributes:
        num_classes: C ≥ 1.
        embedding_size: D ≥ 1.
        init: start of the class weights: deviation of a zero-mean normal, or ``"xavier"`` (uniform,
            ±√(6/(C+D))), or ``"sface"`` (normal of deviation 2·√(2/C), as SFace's authors start).
        memory: keep the products of a block for the backward pass, recompute them, or ``auto``.
        block_size: classes a block; null takes what fits the cache.
        sharded: share the class rows out over the processes of torch.distributed, which then compute the loss
            of all their batches together (see `sharding`); False, or too few classes for a share each: every
            process has all rows.
        sample_rate: share of the class rows that take part in a step, in (0, 1]; those of the batch's own
            classes always do, the others are drawn anew each step (Partial FC). The sum over the other
            classes and what is reported of them are of those rows.
    """

    num_classes: Required[int]
    embedding_size: Required[int]
    init: float | str
    memory: Memory
    block_size: int | None
    sharded: bool
    sample_rate: float


class ClassHead(Head):
    """A head with one weight row a class, whose loss needs the target's product and a sum over the others.

    A subclass says what the classes are compared with (`query`), what each other class adds (`others`) and
    how both make the loss (`loss`).

    Args:
        options: see `HeadOptions`.

    Attributes:
        weight: (C, D) class weights, as the optimizer sees them; where they are shared out, the rows of
            `shard`.
        bias: (C,) or None; likewise.
    """

    shard: Shard

    normalise_weight: ClassVar[bool] = True
    has_bias: ClassVar[bool] = False
    default_init: ClassVar[float | str] = 0.01

    def __init__(self, **options: Unpack[HeadOptions]) -> None:
        super().__init__()
        self.num_classes, self.embedding_size = options["num_classes"], options["embedding_size"]
        self.init = options.get("init", self.default_init)
        self.memory: Memory = options.get("memory", "auto")
        self.block_size = options.get("block_size")
        require(self.num_classes >= 1, "head.num_classes", self.num_classes, "must be 1 or more")
        require(self.embedding_size >= 1, "head.embedding_size", self.embedding_size, "must be 1 or more")
        usable = self.block_size is None or self.block_size >= 1
        require(usable, "head.block_size", self.block_size, "must be 1 or more, or null")
        self.sample_rate = options.get("sample_rate", 1.0)
        in_range = 0 < self.sample_rate <= 1
        require(in_range, "head.sample_rate", self.sample_rate, "must be above 0 and at most 1")
        several, enough = distributed.world_size(), shardable(self.num_classes, distributed.world_size())
        self.sharded = options.get("sharded", False) and several > 1 and enough
        alike = self.sharded or self.sample_rate == 1 or several == 1
        hint = (
            "below 1 needs head.sharded=true where there are several processes, and classes for each of them"
        )
        require(alike, "head.sample_rate", self.sample_rate, hint)
        if options.get("sharded", False) and not enough:
            log.warning(
                "head.sharded: %d classes leave some of %d processes without any, so each holds them all; "
                "the loss is the same",
                *(self.num_classes, several),
            )
        self.shard = Shard(0, self.num_classes, self.num_classes)
        if self.sharded:
            self.shard = Shard.of(self.num_classes, distributed.rank(), distributed.world_size())
            self.sharded_parameters = ("weight", "bias") if self.has_bias else ("weight",)
        self.weight = nn.Parameter(self.new_weight(self.embedding_size))
        self.bias = nn.Parameter(torch.zeros(self.shard.rows)) if self.has_bias else None
        initialise(self.weight, self.init, self.shard)

    def new_weight(self, *size: int) -> Tensor:
        """Room for the class weights that this process holds, of `size` each."""
        return torch.empty(self.shard.rows, *size)

    def query(self, samples: Samples) -> Tensor:
        """What is multiplied with the class weights; by default the unit vectors of the embeddings."""
        return samples.embedding_BD * inverse_norm(samples.norm_B)[:, None]

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        """What each other class adds, given the targets' products (B); runs without gradient."""
        return Scaled()

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each sample (B), and statistics of this head's own."""
        raise NotImplementedError

    def forward(self, embedding_BD: Tensor, label_B: Tensor, sizes: distributed.Sizes = None) -> HeadOutput:
        """Loss and statistics of a batch.

        Args:
            embedding_BD: raw embeddings; computed in the weights' fp32 (or float64) whatever the autocast
                around it, since a rounding of 1e-3 in a cosine is 0.06 in a logit at s=64.
            label_B: integers in [0, C), of shape (B,).
            sizes: where the classes are shared out, the sizes of all processes' batches if they differ.

        Raises:
            UserError: embeddings or labels of another shape or type.
            DamagedDataError: a label outside [0, C).
        """
        check_batch(embedding_BD, label_B, self.num_classes, self.embedding_size)
        with torch.autocast(embedding_BD.device.type, enabled=False):
            embedding_BD = embedding_BD.to(self.weight.dtype)
            norm_B = torch.linalg.vector_norm(embedding_BD, dim=1)
            samples = Samples(embedding_BD, label_B.long(), norm_B, sizes)
            sums = self.sums(samples.of_all_processes() if self.sharded else samples)
            loss_B, own_statistics = self.loss(sums, samples)
            statistics = describe_step(sums, norm_B)
        return HeadOutput(loss_B.mean(), statistics | {k: v.detach() for k, v in own_statistics.items()})

    def sums(self, samples: Samples) -> ClassSums:
        """The walk over the classes; where these are shared out, with the samples of all processes."""
        row_B = samples.label_B
        weight: Tensor = self.weight
        bias_C: Tensor | None = self.bias
        if self.sharded:
            row_B = self.shard.local(row_B)
        if self.sample_rate < 1 and self.training:
            chosen_K, row_B = sample_rows(row_B, len(weight), self.sample_rate)
            weight = take_rows(weight, chosen_K)
            bias_C = None if bias_C is None else take_rows(bias_C, chosen_K)
        return class_sums(
            self.query(samples),
            weight,
            row_B,
            lambda target_B: self.others(target_B, samples),
            bias_C=bias_C,
            normalise_weight=self.normalise_weight,
            memory=self.memory,
            block_size=self.block_size,
            sharded=self.sharded,
            sizes=samples.sizes,
        )


class MarginOptions(HeadOptions, total=False):
    """`HeadOptions` and ``s``, the scale of the logits, > 0; 64 by default."""

    s: float


class MarginHead(ClassHead):
    """Cross entropy over s·cos θ_j, in which only the target's cosine is replaced: the family of ArcFace.

    Args:
        s: scale of the logits, > 0.
        options: see `HeadOptions`.
    """

    def __init__(self, *, s: float = 64.0, **options: Unpack[HeadOptions]) -> None:
        super().__init__(**options)
        require(s > 0, "head.s", s, "must be greater than 0")
        self.s = s

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        """The target's cosine with its margin: a decreasing function of the angle, given ‖x‖ as well."""
        raise NotImplementedError

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return Scaled(self.s)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(self.s * self.target(sums.target_B, samples.norm_B), sums.others_B), {}


def cross_entropy(target_B: Tensor, others_B: Tensor) -> Tensor:
    """−log softmax of the target's logit against the log-sum-exp of the others: log(1 + e^(others − target)).

    Written as a softplus, which keeps the digits of small losses that log-sum-exp minus logit would cancel.
    """
    return softplus(others_B - target_B, threshold=50)


def inverse_norm(norm: Tensor) -> Tensor:
    """1/‖x‖, and 0 with no gradient for x shorter than 1e-6, which has no direction to speak of.

    Otherwise an embedding of zeros would get a gradient of 1/ε, which is infinite in fp16.
    """
    return torch.where(norm > 1e-6, 1.0 / norm.clamp_min(1e-6), 0.0)


def sine(cosine: Tensor) -> Tensor:
    """√(1−c²), its slope kept finite at |c| = 1, where the exact one is infinite."""
    return (1 - cosine * cosine).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()


@torch.no_grad()
def describe_step(sums: ClassSums, norm_B: Tensor) -> dict[str, Tensor]:
    """Mean target cosine and angle (degrees), mean and hardest other cosine, top-1 without any margin."""
    cosine_B = sums.cosine_B.clamp(-1, 1)
    return {
        "target_cosine": cosine_B.mean(),
        "target_angle": torch.rad2deg(cosine_B.acos()).mean(),
        "other_cosine": sums.mean_B.mean(),
        "hardest_cosine": sums.hardest_B.mean(),
        "accuracy": (sums.cosine_B > sums.hardest_B).float().mean(),
        "embedding_norm": norm_B.mean(),
    }


@torch.no_grad()
def initialise(weight: Tensor, init: float | str, shard: Shard) -> None:
    """Fill class weights as `HeadOptions` says; raises `ConfigError` for an unknown start.

    A process that holds a part of the classes draws the numbers of all, so that together they start from the
    same weights as a single process would.
    """
    bound, deviation = 0.0, 0.0
    if init == "xavier":
        rows = weight.shape[1:-1].numel() * shard.classes
        bound = math.sqrt(6 / (rows + weight.shape[-1]))
    elif init == "sface":
        deviation = 2 * math.sqrt(2 / shard.classes)
    elif isinstance(init, str):
        raise ConfigError("head.init", init, "must be xavier, sface or a deviation such as 0.01")
    else:
        require(init > 0, "head.init", init, "a deviation must be greater than 0")
        deviation = init

    def draw(rows: Tensor) -> None:
        rows.normal_(0, deviation) if deviation else rows.uniform_(-bound, bound)

    if shard.whole:
        draw(weight)
        return
    for start in range(0, shard.classes, _DRAWN):
        size = (min(_DRAWN, shard.classes - start), *weight.shape[1:])
        block = torch.empty(size, dtype=weight.dtype, device=weight.device)
        draw(block)
        first, last = max(start, shard.start), min(start + len(block), shard.stop)
        if first < last:
            weight[first - shard.start : last - shard.start] = block[first - start : last - start]


def check_batch(embedding_BD: Tensor, label_B: Tensor, num_classes: int, embedding_size: int) -> None:
    """Refuse what is not embeddings (B, D) with a label in [0, C) each.

    On a GPU the range is checked asynchronously, so that the host need not wait.

    Raises:
        UserError: embeddings or labels of another shape or type.
        DamagedDataError: a label outside [0, C).
    """
    if embedding_BD.ndim != 2 or embedding_BD.shape[1] != embedding_size:
        raise UserError(
            f"embeddings of shape {tuple(embedding_BD.shape)} do not fit the head: it takes (B, "
            f"{embedding_size}), by its embedding_size"
        )
    if label_B.shape != embedding_BD.shape[:1]:
        raise UserError(
            f"labels of shape {tuple(label_B.shape)} do not fit {len(embedding_BD)} embeddings: they must be "
            f"of shape ({len(embedding_BD)},), the number of a class each"
        )
    if label_B.is_floating_point() or label_B.is_complex() or label_B.dtype == torch.bool:
        raise UserError(f"labels are {label_B.dtype}; they must be integers, the number of a class each")
    wrong_B = (label_B < 0) | (label_B >= num_classes)
    if label_B.device.type == "cpu":
        if wrong_B.any():
            place = int(wrong_B.nonzero()[0])
            raise DamagedDataError(
                f"label {int(label_B[place])} (sample {place} of the batch) is outside 0…{num_classes - 1}; "
                "the labels of a pack must be remapped to its classes"
            )
    elif label_B.device.type == "cuda":
        torch._assert_async(~wrong_B.any(), f"a label is outside 0 to {num_classes - 1}")
