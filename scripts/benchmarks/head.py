"""Forward and backward of heads over many classes: time and memory, against three matrix products.

The floor of the time is the products alone: samples by classes, and its two gradients, in blocks. That of the
memory is the weights' gradient. The reference is the loss written plainly: one-hot masks, all logits at once.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from table import CPU, Row, best, in_processes, peak_memory
from torch import Tensor
from torch.nn import functional as F

from facerec.heads import create_head
from facerec.heads.mechanism.products import multiply, resolve_format, tensor_cores

BATCH, SIZE = 256, 512
REFERENCE_CLASSES = 200_000  # at most; more do not fit the reference
REFERENCE_CLASSES_GPU = 2_000_000

Step = Callable[[], object]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", default="10572,85742", help="with commas; up to 1000000 on 16 GB")
    parser.add_argument("--heads", default="arcface,sface", help="with commas; all but pair losses")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples (default %(default)s)")
    parser.add_argument(
        "--products", default="auto", help="with commas: fp32, tf32, bf16 (default %(default)s)"
    )
    parser.add_argument("--fused", action="store_true", help="also with the work on a block compiled")
    parser.add_argument("--sampled", default="", help="of these numbers of classes, a tenth in a step")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="measurements in turn; the fastest counts")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    if options.threads:
        torch.set_num_threads(options.threads)
    for number, rate in [(number, 1.0) for number in options.classes.split(",")] + [
        (number, 0.1) for number in options.sampled.split(",") if number
    ]:
        for name in options.heads.split(","):
            for products in options.products.split(","):
                for fused in (False, True) if options.fused else (False,):
                    at = Setting(name, int(number), options.batch, options.device, products, rate, fused)
                    yield from time_rows(at, options.rounds)
                    yield from memory_rows(at)


@dataclass(frozen=True)
class Setting:
    """What is measured: a head over so many classes."""

    name: str
    classes: int
    batch: int = BATCH
    device: torch.device = CPU
    products: str = "auto"
    sample_rate: float = 1.0
    fused: bool = False

    @property
    def has_reference(self) -> bool:
        """True where the plain loss is known and its whole logits fit."""
        most = REFERENCE_CLASSES if self.device.type == "cpu" else REFERENCE_CLASSES_GPU
        return self.name in REFERENCES and self.classes <= most and self.sample_rate == 1

    def __str__(self) -> str:
        parts = [f"{self.name} C={self.classes}"]
        parts += [f"B={self.batch}"] if self.batch != BATCH else []
        parts += [self.products] if self.products != "auto" else []
        parts += [f"{self.sample_rate:g} sampled"] if self.sample_rate < 1 else []
        parts += ["fused"] if self.fused else []
        return " ".join(parts)

    def problem(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw weights (C, D), embeddings (B, D) and labels (B)."""
        return problem(self.classes, self.batch, self.device)


def time_rows(at: Setting, rounds: int) -> Iterator[Row]:
    """Measure the seconds of a step, keep and recompute, in turn with floor and reference."""
    weight_CD, embedding_BD, label_B = at.problem()
    steps = {"floor": floor(weight_CD[: round(at.classes * at.sample_rate)], embedding_BD, at.products)}
    for memory in ("keep", "recompute"):
        steps[memory] = head_step(at, memory, weight_CD, embedding_BD, label_B)
    if at.has_reference:
        steps["reference"] = reference_step(at.name, weight_CD, embedding_BD, label_B)
    seconds = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()  # loads kernels, compiles
    for _ in range(rounds):
        for key, step in steps.items():
            seconds[key] = min(seconds[key], best(step, 1, gc.collect, at.device))
    for memory in ("keep", "recompute"):
        yield Row(f"{at} {memory}", seconds[memory], "s", seconds["floor"], seconds.get("reference"))


def memory_rows(at: Setting) -> Iterator[Row]:
    """Measure the peak MB of a step above weights and embeddings, on a CPU each in a process of its own."""

    def measured(way: str) -> float:
        return float(in_processes(peak, at, way)[0] if at.device.type == "cpu" else peak(at, way))

    gradient = 4 * at.classes * at.sample_rate * SIZE / 1e6
    plain = measured("reference") if at.has_reference else None
    for memory in ("keep", "recompute"):
        yield Row(f"{at} {memory}, peak memory", measured(memory), "MB", gradient, plain)


def peak(at: Setting, way: str) -> float:
    """Return the peak MB of a step, on a CPU to be called in a fresh process."""
    if at.device.type == "cpu":
        torch.set_num_threads(2)
    small = replace(at, classes=512)
    make_step(small, way)()  # loads libraries, starts threads
    return peak_memory(make_step(at, way), at.device)


def problem(classes: int, batch: int = BATCH, device: torch.device = CPU) -> tuple[Tensor, Tensor, Tensor]:
    """Draw weights (C, D), embeddings (B, D) and labels (B)."""
    generator = torch.Generator(device).manual_seed(0)
    weight_CD = torch.randn(classes, SIZE, generator=generator, device=device).mul_(0.01)
    embedding_BD = torch.randn(batch, SIZE, generator=generator, device=device)
    return weight_CD, embedding_BD, torch.randint(classes, (batch,), generator=generator, device=device)


def floor(weight_CD: Tensor, embedding_BD: Tensor, products: str = "auto") -> Step:
    """Return the three matrix products of a step, in blocks that stay in a CPU's cache."""
    name = resolve_format(products, weight_CD)  # type: ignore[arg-type]
    block = 4096 if weight_CD.device.type == "cpu" else 131_072

    def step() -> None:
        gradient_CD = torch.empty_like(weight_CD)
        gradient_BD = torch.zeros_like(embedding_BD)
        with tensor_cores(name):
            for start in range(0, len(weight_CD), block):
                block_KD = weight_CD[start : start + block]
                product_KB = multiply(block_KD, embedding_BD.t(), name)
                multiply(product_KB, embedding_BD, name, gradient_CD[start : start + block])
                if name == "bf16":
                    gradient_BD.add_(multiply(product_KB.t(), block_KD, name))
                else:
                    gradient_BD.addmm_(product_KB.t(), block_KD)

    return step


def make_step(at: Setting, way: str) -> Step:
    weight_CD, embedding_BD, label_B = at.problem()
    if way == "reference":
        return reference_step(at.name, weight_CD, embedding_BD, label_B)
    return head_step(at, way, weight_CD, embedding_BD, label_B)


def head_step(at: Setting, memory: str, weight_CD: Tensor, embedding_BD: Tensor, label_B: Tensor) -> Step:
    settings: dict[str, Any] = {"memory": memory, "products": at.products, "fused": at.fused}
    settings["sample_rate"] = at.sample_rate
    with torch.device(at.device):
        head = create_head(at.name, num_classes=len(weight_CD), embedding_size=SIZE, **settings)
    if head.weight.shape == weight_CD.shape:
        head.weight = torch.nn.Parameter(weight_CD)  # the same weights for all
    return _step(lambda x, y: head(x, y).loss, head.weight, embedding_BD, label_B)


def reference_step(name: str, weight_CD: Tensor, embedding_BD: Tensor, label_B: Tensor) -> Step:
    weight = torch.nn.Parameter(weight_CD)
    return _step(lambda x, y: REFERENCES[name](x, weight, y), weight, embedding_BD, label_B)


def _step(
    loss: Callable[[Tensor, Tensor], Tensor],
    weight: torch.nn.Parameter,
    embedding_BD: Tensor,
    label_B: Tensor,
) -> Step:
    embedding_BD = embedding_BD.clone().requires_grad_()

    def step() -> None:
        weight.grad = embedding_BD.grad = None
        loss(embedding_BD, label_B).backward()

    return step


def arcface(
    embedding_BD: Tensor, weight_CD: Tensor, label_B: Tensor, s: float = 64, m: float = 0.5
) -> Tensor:
    """ArcFace as it is usually written."""
    cosine_BC = F.linear(F.normalize(embedding_BD), F.normalize(weight_CD)).clamp(-1, 1)
    one_hot_BC = torch.zeros_like(cosine_BC).scatter_(1, label_B[:, None], 1.0)
    target_BC = torch.cos(torch.acos(cosine_BC.clamp(-1 + 1e-7, 1 - 1e-7)) + m)
    return F.cross_entropy(s * (one_hot_BC * target_BC + (1 - one_hot_BC) * cosine_BC), label_B)


def sface(embedding_BD: Tensor, weight_CD: Tensor, label_B: Tensor, s: float = 64, k: float = 80) -> Tensor:
    """SFace as it is usually written."""
    cosine_BC = F.linear(F.normalize(embedding_BD), F.normalize(weight_CD)).clamp(-1, 1)
    one_hot_BC = torch.zeros_like(cosine_BC).scatter_(1, label_B[:, None], 1.0)
    with torch.no_grad():
        angle_BC = cosine_BC.acos()
        intra_BC = s / (1 + torch.exp(-k * (angle_BC - 0.87)))
        inter_BC = s / (1 + torch.exp(k * (angle_BC - 1.22)))
    pulled_B = (one_hot_BC * intra_BC * cosine_BC).sum(1)
    pushed_B = ((1 - one_hot_BC) * inter_BC * cosine_BC).sum(1)
    return (pushed_B - pulled_B).mean()


REFERENCES = {"arcface": arcface, "sface": sface}
