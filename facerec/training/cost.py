"""Memory, floating-point operations and traffic of a step on one rank, by formulas on sizes alone.

A run logs them before it starts; `scripts/plan` prints them for a cluster that need not exist.

Symbols: B samples of a rank, P world size, p = 1 / P where the backbone is sharded, else 1, G = P·B, S
samples that meet the class weights (G where these are sharded, else B), D embedding size, R rows of class
weights on this rank, K ≤ R rows that take part in a step, W parameters of the backbone, M multiply-adds of an
image through it, a bytes that its backward pass needs of an image, T tensors that the optimizer keeps per
parameter, A batches per step, r = (P − 1) / P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from facerec.errors import size_text

if TYPE_CHECKING:
    from facerec.training.loop import Trainer

Formulas: TypeAlias = dict[str, str]  # products of symbols and numbers by what they are: ``"R × D × 4"``


@dataclass(frozen=True)
class Cost:
    """Cost of one optimizer step on one rank; a multiply-add counts as two operations.

    Attributes:
        symbols: their values.
        memory: bytes by part (``backbone``, ``head``, ``logits``, ``activations``) and name.
        flops: operations of ``backbone`` and ``head``.
        sent: bytes per collective, in rings: r of what is gathered or scattered, twice that of what is
            reduced (Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH").
    """

    symbols: dict[str, float]
    memory: dict[str, Formulas]
    flops: Formulas
    sent: Formulas

    def value(self, formula: str) -> float:
        """Return the value of a formula."""
        return math.prod(float(self.symbols.get(factor, factor)) for factor in formula.split(" × "))

    def total(self, formulas: Formulas) -> float:
        """Return the sum over all of `formulas`."""
        return sum(map(self.value, formulas.values()))

    def flops_per_sample(self) -> float:
        """Return the operations of one sample in training."""
        return self.total(self.flops) / self.value("B × A")

    def memory_bytes(self) -> float:
        """Return the memory that is known of one rank."""
        return sum(map(self.total, self.memory.values()))

    def line(self) -> str:
        """Return one line for the log."""
        parts = {part: self.total(formulas) for part, formulas in self.memory.items()}
        memory = ", ".join(f"{part} {size_text(n)}" for part, n in parts.items() if n)
        unknown = "" if "activations" in parts else " and the activations that blocks recompute"
        flops = self.total(self.flops)
        head = self.value(self.flops["head"]) / max(flops, 1)
        sent = f", {size_text(self.total(self.sent))} sent" if self.sent else ""
        return (
            f"{size_text(self.memory_bytes())} per process ({memory}){unknown}, beside Python's and torch's "
            f"own; a step: {flops / 1e12:.3g} TFLOPs (head {head:.0%}){sent}"
        )


def estimate(
    *,
    parameters: int,
    multiply_adds: float,
    rows: int,
    embedding_size: int,
    batch_size: int,
    sample_rate: float = 1.0,
    filtered: bool = False,
    sharded: bool = True,
    world_size: int = 1,
    accumulate: int = 1,
    state_tensors: int = 1,
    keep: bool | float = True,
    half: bool = False,
    frozen: bool = False,
    fsdp: bool = False,
    ema: bool = False,
    activation: float = 0.0,
    block: int = 256 * 2**20,
) -> Cost:
    """Return the cost of a step.

    Args:
        parameters, multiply_adds, activation: W, M and a of the backbone; `activation` 0 where not known.
        rows: R; 0 for a head without class weights.
        sample_rate: fraction of the rows that take part; no fewer than there are samples.
        filtered: classes above a cosine are left out, which takes a mask of a block.
        sharded: the ranks hold different rows.
        state_tensors: T: SGD 0, with momentum 1; AdamW 2.
        keep: keep the logits for the backward pass, or compute them again; a number: keep fewer bytes.
        half: the backbone computes in bf16 or fp16.
        frozen: the backbone is not trained.
        fsdp: the ranks hold different rows of the backbone's weights.
        ema: a moving average of the backbone's weights is kept.
        block: bytes of a block of logits, see `facerec.heads.mechanism.class_sums`.
    """
    samples = world_size * batch_size if sharded else batch_size
    sampled = sample_rate < 1
    taking_part = min(rows, max(math.ceil(sample_rate * rows), samples)) if sampled else rows
    logits = taking_part * samples * 4
    keep = logits < keep if not isinstance(keep, bool) else keep
    symbols: dict[str, float] = {"B": batch_size, "P": world_size, "G": world_size * batch_size}
    symbols |= {"S": samples, "A": accumulate}
    symbols |= {"D": embedding_size, "R": rows, "K": taking_part, "T": state_tensors}
    symbols |= {"W": parameters, "M": multiply_adds, "a": activation, "r": 1 - 1 / world_size}
    symbols["p"] = 1 / world_size if fsdp else 1

    held = "p × W × 4" if fsdp else "W × 4"
    backbone = {"weights": held} | ({"half-precision copies": "W × 2"} if half else {})
    backbone |= {"gathered by block, all of them to evaluate": "W × 4"} if fsdp else {}
    backbone |= {"moving average": held} if ema else {}
    head = {"weights": "R × D × 4", "state": "T × R × D × 4"}
    head["gradient"] = f"{accumulate if sampled else min(accumulate, 2)} × K × D × 4"
    if sampled:
        head["copies of sampled rows"] = f"{1 + state_tensors} × K × D × 4"
    working = {"embeddings and gradients": "4 × S × D × 4"}
    working["blocks at work"] = f"{3.25 if filtered else 3} × {min(logits, max(block, 1024 * samples))}"
    working |= {"kept": "K × S × 4"} if keep else {}
    memory = {"backbone": backbone, "head": head, "logits": working}
    sent: Formulas = {}
    if not frozen:
        backbone |= {"gradient": held, "state": f"T × {held}"}
        if fsdp:
            sent["backbone's weights, all-gather forward and backward"] = "A × 2 × r × W × 4"
            sent["backbone's gradients, reduce-scatter"] = "A × r × W × 4"
        else:
            sent["backbone's gradients, all-reduce"] = "2 × r × W × 4"
    if activation or frozen:
        memory["activations"] = {} if frozen else {"kept": "B × a"}
    if sharded:
        sent |= {
            "embeddings, all-gather": "A × r × G × D × 4",
            "labels, all-gather": "A × r × G × 8",
            "3 reductions of 3 + 2 + 3 numbers per sample": "A × 2 × r × G × 8 × 4",
            "3 gradients per sample, all-gather": "A × r × G × 3 × 4",
            "embeddings' gradients, reduce-scatter": "A × r × G × D × 4",
        }
    elif rows:
        sent["class weights' gradients, all-reduce"] = "2 × r × R × D × 4"
    passes = 3 if keep else 4  # logits; again; gradient to the weights; gradient to the embeddings
    flops = {"backbone": f"{2 if frozen else 6} × M × B × A", "head": f"{2 * passes} × K × S × D × A"}
    return Cost(symbols, memory, flops, sent if world_size > 1 else {})


def of_run(trainer: Trainer) -> Cost:
    """Return the cost of a step of `trainer`."""
    # torch: `estimate` does without
    from facerec.backbones.flops import activation_bytes, multiply_adds
    from facerec.heads.mechanism.class_sums import block_bytes, kept_bytes
    from facerec.training.parallel import is_sharded

    head, settings, device = trainer.head, trainer.settings, trainer.device
    memory, weight = getattr(head, "memory", "keep"), getattr(head, "weight", None)
    backbone, shape, half = trainer.backbone, trainer.input.shape, settings.precision != "fp32"
    exact = not (trainer.start.frozen or settings.checkpoint_activations)
    moments = {"AdamW": 2, "SGD": 1 if trainer.optimizer.defaults.get("momentum") else 0}
    return estimate(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        multiply_adds=multiply_adds(backbone, shape),
        rows=0 if weight is None else math.prod(weight.shape[:-1]),
        embedding_size=1 if weight is None else weight.shape[-1],
        batch_size=settings.batch_size,
        sample_rate=getattr(head, "sample_rate", 1.0),
        filtered=getattr(head, "interclass_filtering", None) is not None,
        sharded=bool(head.sharded_parameters),
        world_size=trainer.loader.world_size,
        accumulate=settings.accumulate,
        state_tensors=moments.get(type(trainer.optimizer).__name__, 1),
        keep=kept_bytes(device) if memory == "auto" else memory == "keep",
        half=half,
        frozen=trainer.start.frozen,
        fsdp=is_sharded(backbone),
        ema=trainer.ema is not None,
        activation=activation_bytes(backbone, shape, half=half) if exact else 0,
        block=block_bytes(device),
    )
