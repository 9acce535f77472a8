"""What a run needs before it starts: memory, floating-point operations and traffic of each process.

Arithmetic on sizes alone: nothing is measured or allocated. `scripts/plan` prints it for a cluster that need
not exist, and a run says it in its log.

Symbols: B samples of a process, P processes, G = P·B samples of all, D embedding size, R rows of class
weights in a process, K ≤ R rows that take part in a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from facerec.training.loop import Trainer

_LABEL = 8  # bytes of an int64
_NUMBER = 4  # the head computes in fp32
_BLOCK = 256 * 2**20  # bytes of a block of products on a GPU, see facerec.heads.mechanism.class_sums


@dataclass(frozen=True)
class HeadSize:
    """The class weights of one process.

    Args:
        rows: R, rows held here (classes times sub-centres), 0 for a head without class weights.
        embedding_size: D.
        sample_rate: share of the rows that take part in a step, in (0, 1].
        sharded: whether the processes hold different rows.
        bytes: of one weight; 4 for fp32.
    """

    rows: int
    embedding_size: int = 512
    sample_rate: float = 1.0
    sharded: bool = True
    bytes: int = 4

    @classmethod
    def of(cls, classes: int, processes: int = 1, *, centres: int = 1, **rest: float) -> HeadSize:
        """The largest share that a process gets where `classes` are shared out over `processes`."""
        rows = -(-classes // processes) * centres
        return cls(rows, sharded=processes > 1, **rest)  # type: ignore[arg-type]

    def taking_part(self, samples: int) -> int:
        """K: rate·R, or as many as there are samples in all, where that is more."""
        if self.sample_rate == 1:
            return self.rows
        return min(self.rows, max(math.ceil(self.sample_rate * self.rows), samples))


@dataclass(frozen=True)
class Cost:
    """Bytes of memory, floating-point operations and bytes sent, of one process and one optimizer step.

    A multiply-add counts as two operations.

    Attributes:
        backbone_weights, backbone_gradients, backbone_state: bytes in fp32; `state` is the optimizer's.
        backbone_copies: bytes of the weights in the lower precision, which autocast keeps for a step.
        activations: bytes that the backward pass of the backbone needs; 0 where not known.
        head_weights, head_gradients, head_state: bytes of the class weights. With sampled rows the gradient
            has these rows alone; the optimizer's state has all. Where batches are accumulated, the gradient
            of one is added to those before; of sampled rows, each batch's are kept.
        sampled_copies: bytes of the sampled rows that are copied for the loss, and later, with their state,
            for the optimizer; the larger of the two, since the first has gone by then.
        logits: bytes of the products that are kept for the backward pass; 0 where they are computed again.
        block: bytes of the products being worked on: three blocks.
        embeddings: bytes of the gathered embeddings, the unit vectors of them, and both gradients.
        backbone_flops, head_flops: floating-point operations.
        wire: bytes that a process sends in each collective, by its name.
    """

    backbone_weights: int
    backbone_gradients: int
    backbone_state: int
    backbone_copies: int
    activations: int
    head_weights: int
    head_gradients: int
    head_state: int
    sampled_copies: int
    logits: int
    block: int
    embeddings: int
    backbone_flops: float
    head_flops: float
    wire: dict[str, float]

    @property
    def backbone(self) -> int:
        """Bytes of the backbone's weights, gradients and optimizer state."""
        return self.backbone_weights + self.backbone_gradients + self.backbone_state

    @property
    def head(self) -> int:
        """Bytes of the class weights, their gradients and optimizer state."""
        return self.head_weights + self.head_gradients + self.head_state

    @property
    def memory(self) -> int:
        """Bytes in all; the most that is there at once, as far as it is known."""
        working = self.backbone_copies + self.activations + self.logits + self.block + self.embeddings
        return self.backbone + self.head + self.sampled_copies + working

    @property
    def flops(self) -> float:
        """Floating-point operations of a step."""
        return self.backbone_flops + self.head_flops

    @property
    def sent(self) -> float:
        """Bytes sent in a step."""
        return sum(self.wire.values())

    def line(self) -> str:
        """One line for the log."""
        parts = {
            "backbone": self.backbone + self.backbone_copies,
            "head": self.head + self.sampled_copies,
            "logits": self.logits + self.block + self.embeddings,
            "activations": self.activations,
        }
        memory = ", ".join(f"{name} {size(n)}" for name, n in parts.items() if n)
        unknown = (
            ""
            if self.activations or not self.backbone_gradients
            else " and the activations that blocks recompute"
        )
        traffic = f", {size(self.sent)} sent" if self.sent else ""
        return (
            f"{size(self.memory)} a process ({memory}){unknown}, beside Python's and torch's own; a step: "
            f"{self.flops / 1e12:.3g} TFLOPs "
            f"(head {self.head_flops / max(self.flops, 1):.0%}){traffic}"
        )


def estimate(
    *,
    parameters: int,
    multiply_adds: float,
    head: HeadSize,
    batch_size: int,
    processes: int = 1,
    accumulate: int = 1,
    state_tensors: int = 1,
    keep: bool | int = True,
    half: bool = False,
    frozen: bool = False,
    activation: float = 0.0,
    block: int = _BLOCK,
) -> Cost:
    """The cost of a step.

    Args:
        parameters: of the backbone.
        multiply_adds: of one image through the backbone, forward.
        head: its rows in this process.
        batch_size: B, images a process takes at once.
        processes: P.
        accumulate: batches a step.
        state_tensors: how many tensors the optimizer keeps for each parameter: SGD 0, with momentum 1; AdamW
            2.
        keep: whether the products of samples and classes are kept for the backward pass, or computed again;
            a number: kept where they take fewer bytes than that.
        half: the backbone computes in bf16 or fp16.
        frozen: the backbone is not trained.
        activation: bytes that the backward pass needs of each image; 0 where not known.
        block: bytes of a block of products.
    """
    samples, size_D = processes * batch_size, head.embedding_size
    rows = head.taking_part(samples if head.sharded else batch_size)
    seen = samples if head.sharded else batch_size
    sampled = head.sample_rate < 1
    weights = parameters * _NUMBER
    row = size_D * head.bytes
    products = rows * seen * _NUMBER
    keep = keep if isinstance(keep, bool) else products < keep
    passes = 3 if keep else 4  # products; again; gradient to the weights; gradient to the embeddings
    return Cost(
        backbone_weights=weights,
        backbone_gradients=0 if frozen else weights,
        backbone_state=0 if frozen else weights * state_tensors,
        backbone_copies=weights // 2 if half else 0,
        activations=0 if frozen else round(activation * batch_size),
        head_weights=head.rows * row,
        head_gradients=rows * row * (accumulate if sampled else min(accumulate, 2)),
        head_state=head.rows * row * state_tensors,
        sampled_copies=rows * row * (1 + state_tensors) if sampled else 0,
        logits=products if keep else 0,
        block=3 * min(products, max(block, 256 * seen * _NUMBER)),
        embeddings=4 * seen * size_D * _NUMBER,
        backbone_flops=2 * multiply_adds * batch_size * accumulate * (1 if frozen else 3),
        head_flops=2 * passes * rows * seen * size_D * accumulate,
        wire=_wire(weights, head, batch_size, processes, accumulate, frozen),
    )


def _wire(
    weights: int, head: HeadSize, batch_size: int, processes: int, accumulate: int, frozen: bool
) -> dict[str, float]:
    """Bytes that a process sends in each collective, with rings: P − 1 of P parts of what is gathered or
    scattered, twice that of what is reduced for all (Thakur et al. 2005, "Optimization of Collective
    Communication Operations in MPICH").
    """
    if processes == 1:
        return {}
    share = (processes - 1) / processes
    samples = processes * batch_size
    sent = {} if frozen else {"backbone's gradients, all-reduce": 2 * share * weights}
    if not head.sharded:
        gradient = head.rows * head.embedding_size * head.bytes
        return sent | ({"class weights' gradients, all-reduce": 2 * share * gradient} if gradient else {})
    embeddings = samples * head.embedding_size * _NUMBER
    of_head = {
        "embeddings, all-gather": share * embeddings,
        "labels, all-gather": share * samples * _LABEL,
        # target's product, cosine and norm; largest exponent and cosine; sum, mean and count
        "3 reductions of 3 + 2 + 3 numbers a sample": 2 * share * samples * 8 * _NUMBER,
        "3 gradients a sample, all-gather": share * samples * 3 * _NUMBER,
        "embeddings' gradients, reduce-scatter": share * embeddings,
    }
    return sent | {name: n * accumulate for name, n in of_head.items()}


def of_run(trainer: Trainer, gflops: float, activation: float = 0.0) -> Cost:
    """The cost of a step of `trainer`.

    Args:
        trainer: as `assemble` makes it.
        gflops: 10⁹ multiply-adds that its backbone takes for an image, forward.
        activation: bytes that the backward pass needs of each image; 0 where not known.
    """
    from facerec.heads.mechanism.class_sums import block_bytes, kept_bytes  # torch: `estimate` does without

    head, settings = trainer.head, trainer.settings
    memory = getattr(head, "memory", "keep")
    weight = getattr(head, "weight", None)
    centres = math.prod(weight.shape[1:-1]) if weight is not None else 1
    shape = HeadSize(
        rows=0 if weight is None else len(weight) * centres,
        embedding_size=1 if weight is None else weight.shape[-1],
        sample_rate=getattr(head, "sample_rate", 1.0),
        sharded=bool(head.sharded_parameters),
        bytes=4 if weight is None else weight.element_size(),
    )
    moments = {"AdamW": 2, "SGD": 1 if trainer.optimizer.defaults.get("momentum") else 0}
    return estimate(
        parameters=sum(parameter.numel() for parameter in trainer.backbone.parameters()),
        multiply_adds=gflops * 1e9,
        head=shape,
        batch_size=settings.batch_size,
        processes=trainer.loader.world_size,
        accumulate=settings.accumulate,
        state_tensors=moments.get(type(trainer.optimizer).__name__, 1),
        keep=kept_bytes(trainer.device) if memory == "auto" else memory == "keep",
        half=settings.precision != "fp32",
        frozen=trainer.start.frozen,
        activation=activation,
        block=block_bytes(trainer.device),
    )


def size(n: float) -> str:
    """Bytes as people read them: 1 GB = 10⁹ bytes."""
    scales: tuple[tuple[float, Literal["TB", "GB", "MB", "kB"]], ...] = (
        (1e12, "TB"),
        (1e9, "GB"),
        (1e6, "MB"),
        (1e3, "kB"),
    )
    for scale, unit in scales:
        if n >= scale:
            return f"{n / scale:.3g} {unit}" if n < 999.5 * scale else f"{n / scale:.0f} {unit}"
    return f"{n:.0f} bytes"
