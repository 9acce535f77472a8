"""Plan a training on a cluster that need not exist: memory, traffic and time, with the arithmetic.

Sizes follow from the code (facerec.training.cost, whose symbols the table has). Times follow from assumptions
about the hardware, which are printed with them and are options; nothing is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator

from facerec.training.cost import Cost, estimate, size

_PASSES = 25  # times that the logits are read or written, counted in facerec.heads.mechanism.class_sums

Row = tuple[str, str, str]  # what, how it is computed, how much


def sizes(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    rows, taking_part, samples = (int(cost.symbols[name]) for name in "RKS")
    yield "images per step, G", f"{o.gpus} × {o.batch}", f"{samples:,}"
    yield "class rows per GPU, R", f"⌈{o.identities:,} / {o.gpus}⌉", f"{rows:,}"
    yield "rows taking part, K", f"max(⌈{o.sample_rate:g} × R⌉, G), R at most", f"{taking_part:,}"
    yield "parameters of the backbone, W", o.backbone, f"{int(cost.symbols['W']):,}"
    yield "multiply-adds per image, M", o.backbone, f"{cost.symbols['M'] / 1e9:.2f} G"
    yield "bytes of activations per image, a", o.backbone, size(cost.symbols["a"])
    yield "steps per epoch", f"{o.images:,} / G", f"{o.images // samples:,}"


def memory(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    for part, formulas in cost.memory.items():
        for name, formula in formulas.items():
            yield f"{part}: {name}", formula, size(cost.value(formula))
    if "kept" not in cost.memory["logits"]:
        yield "logits: kept", "none, computed again", size(0)
    yield f"in all, of {o.memory:g} GB", "sum", size(sum(map(cost.total, cost.memory.values())))


def sent(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    for name, formula in cost.sent.items():
        yield name, formula, size(cost.value(formula))
    yield "in all", "sum", size(cost.total(cost.sent))


def step_time(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    """Of the all-reduce of the backbone's gradients, which runs beside its backward pass, a step waits only
    for what takes longer than that.
    """
    samples, traffic = cost.symbols["S"], {name: cost.value(one) for name, one in cost.sent.items()}
    reduced = traffic.pop("backbone's gradients, all-reduce", 0.0)
    rest = sum(traffic.values())
    backbone = cost.value(cost.flops["backbone"]) / (o.peak * o.mfu * 1e12)
    network = f"{o.network:g} GB/s"
    times = {
        "backbone, bf16": (f"{cost.flops['backbone']} / ({o.mfu:g} × {o.peak:g} TFLOP/s)", backbone),
        "matrix products of the head, fp32": (
            f"{cost.flops['head']} / ({o.fp32_use:g} × {o.fp32:g} TFLOP/s)",
            cost.value(cost.flops["head"]) / (o.fp32 * o.fp32_use * 1e12),
        ),
        "passes over the logits": (
            f"{_PASSES} × K × S × 4 / {o.bandwidth:g} TB/s",
            cost.value(f"{_PASSES} × K × S × 4") / (o.bandwidth * 1e12),
        ),
        "collectives of the head": (
            f"{size(rest)} / {network} + 8 × {o.latency:g} µs",
            rest / (o.network * 1e9) + (8e-6 * o.latency if cost.sent else 0.0),
        ),
        "all-reduce beyond the backward pass": (
            f"{size(reduced)} / {network} − 2/3 of the backbone",
            max(0.0, reduced / (o.network * 1e9) - backbone * 2 / 3),
        ),
    }
    for name, (arithmetic, seconds) in times.items():
        yield name, arithmetic, f"{seconds * 1e3:.1f} ms"
    step = sum(seconds for _, seconds in times.values())
    rate = samples / step
    yield "a step", "sum", f"{step * 1e3:.0f} ms"
    yield "images per second", f"G / {step * 1e3:.0f} ms", f"{rate:,.0f}, {rate / o.gpus:,.0f} per GPU"
    yield "an epoch", f"{o.images:,} / {rate:,.0f}", f"{o.images / rate / 3600:.1f} h"
    yield f"{o.epochs:g} epochs", f"{o.epochs:g} × an epoch", f"{o.epochs * o.images / rate / 3600:.1f} h"


def checkpoint(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    copies = 1 + o.state_tensors
    own = cost.value(f"{copies} × 4 × R × D")
    everything = cost.value(f"{copies} × 4 × {o.identities} × D") + cost.value(f"{copies} × 4 × W")
    yield "on disk", f"{copies} × 4 × ({o.identities:,} × D + W)", size(everything)
    yield "written per process", f"{copies} × 4 × R × D", size(own)
    yield "time", f"{size(everything)} / {o.storage:g} GB/s", f"{everything / o.storage / 1e9:.1f} s"
    yield "a stop in the background", f"{size(own)} / {o.pcie:g} GB/s", f"{own / o.pcie / 1e6:.0f} ms"


def number(text: str) -> int:
    """10e6 as well as 10000000."""
    if float(text) < 1 or float(text) != math.floor(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(float(text))


def fraction(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return float(text)


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    made = argparse.ArgumentParser("plan", description=__doc__, formatter_class=formatter)
    add = made.add_argument
    add("--gpus", type=number, default=64, help="processes, P")
    add("--identities", type=number, default=10_000_000, help="classes")
    add("--images", type=number, default=200_000_000, help="images of the data set")
    add("--epochs", type=float, default=20)
    add("--backbone", default="iresnet100")
    add("--embedding-size", type=number, default=512, help="D")
    add("--batch", type=number, default=128, help="images per GPU, B")
    add("--sample-rate", type=fraction, default=1.0, help="head.sample_rate")
    add("--state-tensors", type=int, default=1, help="of the optimizer per parameter, T: SGD 1, AdamW 2")
    add("--keep", action=argparse.BooleanOptionalAction, help="keep logits; without: as head.memory=auto")
    add("--memory", type=float, default=80, help="GB of a GPU")
    add("--peak", type=float, default=312, help="TFLOP/s in bf16 (A100, data sheet)")
    add("--mfu", type=fraction, default=0.19, help="part of it that the backbone reaches")
    add("--fp32", type=float, default=19.5, help="TFLOP/s in fp32 without TF32 (A100, data sheet)")
    add("--fp32-use", type=fraction, default=0.8, help="part of it that large products reach")
    add("--bandwidth", type=float, default=2.0, help="TB/s of the GPU's memory (A100 80 GB, data sheet)")
    add("--network", type=float, default=20, help="GB/s a GPU sends to the next machine (HDR: 25)")
    add("--latency", type=float, default=100, help="µs of a collective")
    add("--storage", type=float, default=10, help="GB/s of the shared file system")
    add("--pcie", type=float, default=20, help="GB/s from a GPU to main memory")
    return made


def main(arguments: list[str]) -> int:
    o = parser().parse_args(arguments)
    import torch

    from facerec.backbones import create_backbone
    from facerec.backbones.flops import activation_bytes, multiply_adds
    from facerec.errors import FacerecError

    try:
        with torch.device("meta"):
            backbone = create_backbone(o.backbone, embedding_size=o.embedding_size).train()
    except FacerecError as error:
        print(f"plan: {error}", file=sys.stderr)
        return error.exit_status
    cost = estimate(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        multiply_adds=multiply_adds(backbone),
        rows=-(-o.identities // o.gpus),
        embedding_size=o.embedding_size,
        batch_size=o.batch,
        sample_rate=o.sample_rate,
        sharded=o.gpus > 1,
        world_size=o.gpus,
        state_tensors=o.state_tensors,
        keep=o.memory * 1e9 / 8 if o.keep is None else o.keep,  # the rule of head.memory=auto
        half=True,
        activation=activation_bytes(backbone, half=True),
    )
    sections = {
        "sizes": sizes,
        "memory of a GPU, bytes": memory,
        "sent by a GPU per step, bytes (rings; r = (P − 1) / P)": sent,
        "time of a step": step_time,
        "checkpoint (checkpoints/last-STEP)": checkpoint,
    }
    tables = {title: list(section(o, cost)) for title, section in sections.items()}
    first, second = (max(len(row[i]) for rows in tables.values() for row in rows) for i in (0, 1))
    for title, rows in tables.items():
        print(f"\n{title}")
        for what, arithmetic, value in rows:
            print(f"  {what:<{first}}  {arithmetic:<{second}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
