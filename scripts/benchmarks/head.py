"""Forward and backward of heads over many classes: time and memory, against three matrix products.

The floor of the time is the products alone: samples by classes, and its two gradients, in blocks. That of the
memory is the weights' gradient. The reference is the loss written plainly: one-hot masks, all logits at once.
--curves measures several numbers of classes and batch sizes instead; --plot draws them.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from matplotlib.ticker import LogLocator
from table import Row, best, in_processes, peak_memory
from torch import Tensor
from torch.nn import functional as F

from facerec.heads import create_head
from facerec.reporting import style

BATCH, SIZE = 256, 512
CURVE_CLASSES, CURVE_BATCHES, CURVE_AT = (2_000, 10_572, 40_000, 85_742), (32, 64, 128, 256, 512), 10_572
REFERENCE_CLASSES = 200_000  # at most; more do not fit the reference

Step = Callable[[], object]
LINES = ("o-", "s-", "--", "^-")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", default="10572,85742", help="with commas; up to 1000000 on 16 GB")
    parser.add_argument("--heads", default="arcface,sface", help="with commas; all but pair losses")
    parser.add_argument("--rounds", type=int, default=5, help="measurements in turn; the fastest counts")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--curves", action="store_true", help="vary classes and batch size; takes minutes")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.curves or options.plot is not None:
        yield from curve_rows(options.heads.split(",")[0], options.rounds, options.plot)
        return
    for classes in (int(number) for number in options.classes.split(",")):
        for name in options.heads.split(","):
            yield from time_rows(name, classes, options.rounds)
            yield from memory_rows(name, classes)


def curve_rows(name: str, rounds: int, path: Path | None) -> Iterator[Row]:
    """Measure time and memory over classes, and time over batch sizes; draw them into `path`, if any."""
    sweeps: list[tuple[str, str, list[tuple[int, list[Row]]]]] = [
        ("classes, batch of 256", "seconds per step", []),
        ("classes, batch of 256", "MB at most above the weights", []),
        (f"batch size, {CURVE_AT:,} classes", "seconds per step", []),
    ]
    for classes in CURVE_CLASSES:
        sweeps[0][2].append((classes, list(time_rows(name, classes, rounds))))
        yield from sweeps[0][2][-1][1]
        sweeps[1][2].append((classes, list(memory_rows(name, classes))))
        yield from sweeps[1][2][-1][1]
    for batch in CURVE_BATCHES:
        sweeps[2][2].append((batch, list(time_rows(name, CURVE_AT, rounds, batch))))
        yield from sweeps[2][2][-1][1]
    if path is not None:
        draw(name, sweeps, path)
        print(f"wrote {path}")


def draw(name: str, sweeps: list[tuple[str, str, list[tuple[int, list[Row]]]]], path: Path) -> None:
    """Draw one panel per sweep: keep, recompute, floor and reference."""
    with style.paper():
        figure = style.figure(9.0, 2.9)
        for axes, (over, unit, points) in zip(figure.subplots(1, 3), sweeps, strict=True):
            x = [number for number, _ in points]
            keep, recompute = ([rows[way].value for _, rows in points] for way in range(2))
            floor, plain = ([getattr(rows[0], key) for _, rows in points] for key in ("floor", "reference"))
            curves = {"keep": keep, "recompute": recompute, "floor": floor, "reference": plain}
            for (label, y), colour, kind in zip(curves.items(), style.COLOURS, LINES, strict=False):
                if None not in y:
                    axes.plot(x, y, kind, color=colour, markersize=3.5, label=label)
            axes.set(xscale="log", yscale="log", xlabel=over, ylabel=unit)
            axes.set_xticks(x, [f"{number:,}" for number in x])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.grid(color=style.LIGHT, linewidth=0.5)
        figure.axes[0].legend(title=name)
        figure.savefig(path)


def time_rows(name: str, classes: int, rounds: int, batch: int = BATCH) -> Iterator[Row]:
    """Measure the seconds of a step, keep and recompute, in turn with floor and reference."""
    weight_CD, embedding_BD, label_B = problem(classes, batch)
    steps = {"floor": floor(weight_CD, embedding_BD)}
    for memory in ("keep", "recompute"):
        steps[memory] = head_step(name, memory, weight_CD, embedding_BD, label_B)
    if name in REFERENCES and classes <= REFERENCE_CLASSES:
        steps["reference"] = reference_step(name, weight_CD, embedding_BD, label_B)
    seconds = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for key, step in steps.items():
            seconds[key] = min(seconds[key], best(step, 1, gc.collect))
    for memory in ("keep", "recompute"):
        yield Row(
            f"{name} C={classes} {memory}" + (f" B={batch}" if batch != BATCH else ""),
            seconds[memory],
            "s",
            floor=seconds["floor"],
            reference=seconds.get("reference"),
        )


def memory_rows(name: str, classes: int) -> Iterator[Row]:
    """Measure the peak MB of a step above weights and embeddings, each in a process of its own."""
    gradient = 4 * classes * SIZE / 1e6
    plain = None
    if name in REFERENCES and classes <= REFERENCE_CLASSES:
        (plain,) = in_processes(peak, name, "reference", classes)
    for memory in ("keep", "recompute"):
        (extra,) = in_processes(peak, name, memory, classes)
        yield Row(f"{name} C={classes} {memory}, peak memory", extra, "MB", floor=gradient, reference=plain)


def peak(name: str, memory: str, classes: int) -> float:
    """Return the peak MB of a step, to be called in a fresh process."""
    torch.set_num_threads(2)
    make_step(name, memory, *problem(512))()  # loads libraries, starts threads
    return peak_memory(make_step(name, memory, *problem(classes)))


def problem(classes: int, batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    """Draw weights (C, D), embeddings (B, D) and labels (B)."""
    generator = torch.Generator().manual_seed(0)
    weight_CD = torch.randn(classes, SIZE, generator=generator).mul_(0.01)
    embedding_BD = torch.randn(batch, SIZE, generator=generator)
    return weight_CD, embedding_BD, torch.randint(classes, (batch,), generator=generator)


def floor(weight_CD: Tensor, embedding_BD: Tensor) -> Step:
    """Return the three matrix products of a step, in blocks that stay in the cache."""

    def step() -> None:
        gradient_CD = torch.empty_like(weight_CD)
        gradient_BD = torch.zeros_like(embedding_BD)
        for start in range(0, len(weight_CD), 4096):
            block_KD = weight_CD[start : start + 4096]
            product_KB = block_KD @ embedding_BD.t()
            torch.mm(product_KB, embedding_BD, out=gradient_CD[start : start + 4096])
            gradient_BD.addmm_(product_KB.t(), block_KD)

    return step


def make_step(name: str, memory: str, weight_CD: Tensor, embedding_BD: Tensor, label_B: Tensor) -> Step:
    if memory == "reference":
        return reference_step(name, weight_CD, embedding_BD, label_B)
    return head_step(name, memory, weight_CD, embedding_BD, label_B)


def head_step(name: str, memory: str, weight_CD: Tensor, embedding_BD: Tensor, label_B: Tensor) -> Step:
    head = create_head(name, num_classes=len(weight_CD), embedding_size=SIZE, memory=memory)
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
