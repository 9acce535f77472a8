"""Plan a training on a cluster that need not exist: memory, traffic and time, with the arithmetic.

Sizes follow from facerec.training.cost; times from assumptions about the hardware, which are options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from facerec.errors import UserError, size_text
from facerec.training.cost import Cost, estimate

_FP32_USE = 0.8  # part of the fp32 peak that large products reach
_PASSES = 25  # times that the logits are read or written, counted in facerec.heads.mechanism.class_sums

Row = tuple[str, str, str]  # what, how it is computed, how much


def sizes(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    rows, taking_part, samples = (int(cost.symbols[name]) for name in "RKS")
    yield "images per step, G", f"{o.gpus} × {o.batch}", f"{samples:,}"
    yield "class rows per GPU, R", f"⌈{o.identities:,} / {o.gpus}⌉", f"{rows:,}"
    yield "rows taking part, K", f"max(⌈{o.sample_rate:g} × R⌉, G), R at most", f"{taking_part:,}"
    yield "parameters of the backbone, W", o.backbone, f"{int(cost.symbols['W']):,}"
    yield "multiply-adds per image, M", o.backbone, f"{cost.symbols['M'] / 1e9:.2f} G"
    yield "bytes of activations per image, a", o.backbone, size_text(cost.symbols["a"])
    yield "steps per epoch", f"{o.images:,} / G", f"{o.images // samples:,}"


def memory(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    for part, formulas in cost.memory.items():
        for name, formula in formulas.items():
            yield f"{part}: {name}", formula, size_text(cost.value(formula))
    yield f"in all, of {o.memory:g} GB", "sum", size_text(sum(map(cost.total, cost.memory.values())))


def step_time(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    """Of the all-reduce of the backbone's gradients, which runs beside its backward pass, a step waits only
    for what takes longer than that.
    """
    traffic = {name: cost.value(one) for name, one in cost.sent.items()}
    reduced = traffic.pop("backbone's gradients, all-reduce", 0.0)
    waits = 8 if cost.sent else 0  # collectives that the head waits for
    passes = f"{_PASSES} × K × S × 4"
    backbone = cost.value(cost.flops["backbone"]) / (o.peak * o.mfu * 1e12)
    head = cost.value(cost.flops["head"]) / (o.fp32 * _FP32_USE * 1e12)
    logits = cost.value(passes) / (o.bandwidth * 1e12)
    exchange = sum(traffic.values()) / (o.network * 1e9) + waits * 1e-6 * o.latency
    beyond = max(0.0, reduced / (o.network * 1e9) - backbone * 2 / 3)
    step = backbone + head + logits + exchange + beyond

    def row(name: str, formula: str, seconds: float) -> Row:
        return name, formula, f"{seconds * 1e3:.1f} ms"

    yield row("backbone, bf16", f"{cost.flops['backbone']} / ({o.mfu} × {o.peak:g} TFLOP/s)", backbone)
    yield row(
        "products of the head, fp32", f"{cost.flops['head']} / ({_FP32_USE} × {o.fp32:g} TFLOP/s)", head
    )
    yield row("passes over the logits", f"{passes} / {o.bandwidth:g} TB/s", logits)
    arithmetic = f"{size_text(sum(traffic.values()))} / {o.network:g} GB/s + {waits} × {o.latency:g} µs"
    yield row("collectives of the head", arithmetic, exchange)
    arithmetic = f"{size_text(reduced)} / {o.network:g} GB/s − 2/3 of the backbone"
    yield row("all-reduce beyond the backward pass", arithmetic, beyond)
    rate = cost.symbols["S"] / step
    yield "a step", "sum", f"{step * 1e3:.0f} ms"
    yield "images per second", f"G / {step * 1e3:.0f} ms", f"{rate:,.0f}, {rate / o.gpus:,.0f} per GPU"
    hours = o.epochs * o.images / rate / 3600
    yield f"{o.epochs:g} epochs", f"{o.epochs:g} × {o.images:,} / {rate:,.0f}", f"{hours:.1f} h"


def checkpoint(o: argparse.Namespace, cost: Cost) -> Iterator[Row]:
    copies = 1 + o.state_tensors
    everything = cost.value(f"{copies} × 4 × {o.identities} × D") + cost.value(f"{copies} × 4 × W")
    yield "on disk", f"{copies} × 4 × ({o.identities:,} × D + W)", size_text(everything)
    yield "written per process", f"{copies} × 4 × R × D", size_text(cost.value(f"{copies} × 4 × R × D"))
    yield "time", f"{size_text(everything)} / {o.storage:g} GB/s", f"{everything / o.storage / 1e9:.1f} s"


OPTIONS: dict[str, tuple[int | float | str, str]] = {
    "gpus": (64, "processes, P"),
    "identities": (10_000_000, "classes"),
    "images": (200_000_000, "images of the data set"),
    "epochs": (20, "passes over them"),
    "backbone": ("iresnet100", "its name"),
    "embedding-size": (512, "D"),
    "batch": (128, "images per GPU, B"),
    "sample-rate": (1.0, "head.sample_rate"),
    "state-tensors": (1, "of the optimizer per parameter, T: SGD 1, AdamW 2"),
    "memory": (80.0, "GB of a GPU"),
    "peak": (312.0, "TFLOP/s in bf16 (A100, data sheet)"),
    "mfu": (0.19, "part of it that the backbone reaches"),
    "fp32": (19.5, "TFLOP/s in fp32 without TF32 (A100, data sheet)"),
    "bandwidth": (2.0, "TB/s of the GPU's memory (A100 80 GB, data sheet)"),
    "network": (20.0, "GB/s a GPU sends to the next machine (HDR: 25)"),
    "latency": (100.0, "µs of a collective"),
    "storage": (10.0, "GB/s of the shared file system"),
}


def main(arguments: list[str]) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("plan", description=__doc__, formatter_class=formatter)
    for name, (default, text) in OPTIONS.items():
        kind = (lambda text: int(float(text))) if isinstance(default, int) else type(default)  # 10e6, too
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    o = parser.parse_args(arguments)
    import torch

    from facerec.backbones import create_backbone
    from facerec.backbones.flops import activation_bytes, multiply_adds

    try:
        with torch.device("meta"):
            backbone = create_backbone(o.backbone, embedding_size=o.embedding_size).train()
    except UserError as error:
        sys.exit(f"plan: {error}")
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
        keep=o.memory * 1e9 / 8,  # the rule of head.memory=auto
        half=True,
        activation=activation_bytes(backbone, half=True),
    )
    sent = [(name, formula, size_text(cost.value(formula))) for name, formula in cost.sent.items()]
    sent.append(("in all", "sum", size_text(cost.total(cost.sent))))
    tables = {
        "sizes": list(sizes(o, cost)),
        "memory of a GPU, bytes": list(memory(o, cost)),
        "sent by a GPU per step, bytes (rings; r = (P − 1) / P)": sent,
        "time of a step": list(step_time(o, cost)),
        "checkpoint (checkpoints/last-STEP)": list(checkpoint(o, cost)),
    }
    first, second = (max(len(row[i]) for rows in tables.values() for row in rows) for i in (0, 1))
    for title, rows in tables.items():
        print(f"\n{title}")
        for what, arithmetic, value in rows:
            print(f"  {what:<{first}}  {arithmetic:<{second}}  {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
