"""Heads, heads with class weights, and heads with a margin, which `MarginHead.loss` applies.

A head is a class whose annotated fields are its settings. What is under it lies in `facerec.heads.mechanism`.

Shapes: B batch, C classes, D embedding size.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from facerec import distributed
from facerec.errors import require, settings_text
from facerec.heads.mechanism import ranges
from facerec.heads.mechanism.batch import Samples, check_batch, inverse_norm, step_statistics
from facerec.heads.mechanism.class_sums import ClassSums, Memory, Walk, class_sums
from facerec.heads.mechanism.products import Format
from facerec.heads.mechanism.sampling import sample_rows, take_rows
from facerec.heads.mechanism.sharding import Shard, initialise
from facerec.heads.mechanism.terms import Scaled, Term
from facerec.registry import Registry
from facerec.settings import Free, check_ranges

log = logging.getLogger(__name__)

HEADS = Registry("head", "facerec.heads")


def list_heads(pattern: str = "*") -> list[str]:
    """Names for `create_head`, sorted; those that match `pattern`, as ``"*face"``."""
    return fnmatch.filter(HEADS.names(), pattern)


def create_head(name: str, *, num_classes: int, embedding_size: int = 512, **parameters: Any) -> Head:
    """Return a freshly initialised head for C identities and embeddings of length D.

    Args:
        name: e.g. ``arcface``; see `HEADS.names()`.
        num_classes, embedding_size: C and D.
        parameters: the head's own (``s``, ``m``, …) and those of `ClassHead`.

    Raises:
        facerec.errors.ConfigError: unknown head or parameter, or a value out of range.
    """
    return HEADS.create(name, parameters, num_classes=num_classes, embedding_size=embedding_size)


class HeadOutput(NamedTuple):
    """The mean loss of a batch, and for the log detached scalar tensors, so that nothing waits for a GPU."""

    loss: Tensor
    statistics: dict[str, Tensor]


@dataclass_transform(eq_default=False, kw_only_default=True)
@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Head(nn.Module):
    """A loss over embeddings and labels; `forward(embedding_BD, label_B, sizes=None)` returns a `HeadOutput`.

    Every subclass is made a dataclass: its annotated fields are its settings, with the ranges they are
    annotated with; parameters and buffers are made in `__post_init__`. The trainer passes as `sizes` the
    number of samples of every rank.

    Attributes:
        shard: the classes that this rank holds.
        sharded_parameters: names of the parameters whose first axis is that of `shard`.
    """

    num_classes: ranges.Count
    embedding_size: ranges.Count

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            raise TypeError(f"{cls.__name__}: settings of a head are annotated fields; use __post_init__")
        dataclasses.dataclass(eq=False, repr=False, kw_only=True)(cls)

    def __post_init__(self) -> None:
        super().__init__()
        check_ranges(self, "head")
        self.shard = Shard(0, self.num_classes, self.num_classes)
        self.sharded_parameters: tuple[str, ...] = ()

    def check_batches(
        self, images_C: npt.NDArray[np.int64], batch_size: int, images_per_identity: int | None
    ) -> None:
        """Raise `ConfigError` where no batch could hold what the loss compares; by default any batch does.

        Identity c has `images_C[c]` images, of which `images_per_identity` are in a batch; 1: unknown, None:
        by chance.
        """

    def after_step(self) -> None:
        """Move state that counts steps; the trainer calls it after each step of the optimizer."""

    def settings(self) -> dict[str, Any]:
        """Return the settings in use, for the log; without those that are null."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def extra_repr(self) -> str:
        return settings_text(self.settings())


class ClassHead(Head):
    """A head with one weight row per class, whose loss needs the target's product and a sum over the others.

    A subclass defines the vectors multiplied with the class weights (`query`), the term of each other class
    (`others`) and the loss of both (`loss`). configs/head/base.yaml says what the settings mean; of these:

    Args:
        init: a deviation draws from a zero-mean normal, ``"xavier"`` uniformly in ±√(6/(C+D)), ``"sface"``
            from a normal of deviation 2·√(2/C), as SFace's authors start, and ``"unit"`` rows of length 1,
            as AdaFace's and MagFace's start. ``"class_means"`` is drawn as 0.01 until the trainer sets each
            row to the mean unit embedding of its identity.
        sharded: with too few classes for every rank to get one, all rows are on every rank.
        sample_rate: the sum over the other classes and what is reported of them are of the sampled rows.
        interclass_filtering: what is left out adds nothing and gets no gradient (An et al. 2022, "Killing
            Two Birds with One Stone": *abnormal inter-class filtering*). The released code sets such a cosine
            to 0 instead, so that each still adds e^0 = 1 to the sum; the gradients are zero there, too.

    Attributes:
        weight: (C, D) class weights, as the optimizer sees them; where they are sharded, the rows of `shard`.
        bias: (C,) or None; likewise.
        per_sample: cosines of the samples of the last batch (B) by name, detached; empty before one.
    """

    normalise_weight: ClassVar[bool] = True
    has_bias: ClassVar[bool] = False

    init: float | str = 0.01
    memory: Free[Memory] = "auto"
    products: Free[Format] = "auto"
    fused: Free[bool] = False
    block_size: Free[ranges.CountOrNull] = None
    sharded: Free[bool] = False
    sample_rate: ranges.Rate = 1.0
    interclass_filtering: ranges.CosineOrNull = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divide_classes()
        self.per_sample: dict[str, Tensor] = {}
        self.weight = nn.Parameter(torch.empty(self.shard.rows, self.embedding_size))
        self.bias = nn.Parameter(torch.zeros(self.shard.rows)) if self.has_bias else None
        initialise(self.weight, self.init, self.shard)

    def _divide_classes(self) -> None:
        """Take this rank's shard of the classes, where they are sharded and there are enough."""
        world_size = distributed.world_size()
        wanted, last = self.sharded, Shard.of(self.num_classes, world_size - 1, world_size)
        enough = last.rows > 0
        self.sharded = wanted and enough and world_size > 1
        require(
            self.sharded or self.sample_rate == 1 or world_size == 1,
            "head.sample_rate",
            self.sample_rate,
            "below 1 needs head.sharded=true where there are several processes, and classes for each of them",
        )
        if self.sharded:
            self.shard = Shard.of(self.num_classes, distributed.rank(), world_size)
            self.sharded_parameters = ("weight", "bias") if self.has_bias else ("weight",)
        elif wanted and not enough:
            log.warning(
                "head.sharded: %d classes leave some of %d processes without any, so each holds them all; "
                "the loss is the same",
                *(self.num_classes, world_size),
            )

    def query(self, samples: Samples) -> Tensor:
        """Return what is multiplied with the class weights; by default the unit vectors of the embeddings."""
        return samples.embedding_BD * inverse_norm(samples.norm_B)[:, None]

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        """Return what each other class adds, given the targets' products (B); runs without gradient."""
        return Scaled()

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each sample (B), and statistics of this head's own."""
        raise NotImplementedError

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        """Return the targets' logits divided by their scale (B), for figures; not every head has them."""
        raise NotImplementedError

    def forward(self, embedding_BD: Tensor, label_B: Tensor, sizes: distributed.Sizes = None) -> HeadOutput:
        """Return loss and statistics of a batch of raw embeddings and integer labels; errors: `check_batch`.

        Computed in the weights' fp32 (or float64) whatever the autocast around it, since a rounding of 1e-3
        in a cosine is 0.06 in a logit at s=64.
        """
        check_batch(embedding_BD, label_B, self.num_classes, self.embedding_size)
        with torch.autocast(embedding_BD.device.type, enabled=False):
            embedding_BD = embedding_BD.to(self.weight.dtype)
            norm_B = torch.linalg.vector_norm(embedding_BD, dim=1)
            samples = Samples(embedding_BD, label_B.long(), norm_B, sizes)
            sums = self.sums(samples.all_gather() if self.sharded else samples)
            loss_B, own_statistics = self.loss(sums, samples)
            statistics = step_statistics(sums, norm_B)
            cosines = {"target_cosine": sums.cosine_B, "hardest_cosine": sums.hardest_B}
            self.per_sample = {name: cosine_B.detach() for name, cosine_B in cosines.items()}
        return HeadOutput(loss_B.mean(), statistics | {k: v.detach() for k, v in own_statistics.items()})

    def sums(self, samples: Samples) -> ClassSums:
        """Return the sums over the classes; where these are sharded, `samples` are those of all ranks."""
        weight: Tensor = self.weight
        bias_C: Tensor | None = self.bias
        row_B = self.shard.local(samples.label_B) if self.sharded else samples.label_B
        if self.sample_rate < 1 and self.training:
            chosen_K, row_B = sample_rows(row_B, len(weight), self.sample_rate)
            weight = take_rows(weight, chosen_K)
            bias_C = None if bias_C is None else take_rows(bias_C, chosen_K)
        return class_sums(
            self.query(samples),
            weight,
            row_B,
            lambda target_B: self.others(target_B, samples),
            bias_C,
            Walk(
                self.normalise_weight,
                self.memory,
                self.block_size,
                self.products,
                self.interclass_filtering,
                self.fused,
                self.sharded,
                samples.sizes,
            ),
        )


class MarginHead(ClassHead):
    """Cross entropy over s·cos θ_j, in which only the target's cosine is replaced: the family of ArcFace.

    Args:
        s: scale of the logits.
    """

    s: ranges.Positive = 64.0

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Tensor:
        """Return the target's cosine with its margin, which falls with the angle and may depend on ‖x‖."""
        raise NotImplementedError

    def others(self, target_B: Tensor, samples: Samples) -> Term:
        return Scaled(self.s)

    def target_logit(self, sums: ClassSums, samples: Samples) -> Tensor:
        return self.target(sums.target_B, samples.norm_B)

    def loss(self, sums: ClassSums, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(self.s * self.target_logit(sums, samples), sums.others_B), {}


def cross_entropy(target_B: Tensor, others_B: Tensor) -> Tensor:
    """Return log(1 + e^(others − target)): −log softmax of the target's logit, given the others' log-sum-exp.

    Written as a softplus, which keeps the digits of small losses that log-sum-exp minus logit would cancel.
    """
    return softplus(others_B - target_B, threshold=50)
