"""What a training would need on a cluster that need not exist: memory, traffic and time, with the arithmetic.

Sizes follow from the code (facerec.training.cost). Times follow from assumptions about the hardware, which
are printed with them and are options; nothing is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

from facerec.training.cost import Cost, HeadSize, estimate, size

# Bytes of what autograd saves of one 112×112 image in bf16 for the backward pass, each storage counted
# once, without weights and their bf16 copies; fp32 takes twice as much. Measured on a CPU with torch 2.14, in
# channels-last, as half the difference between batches of 4 and of 2. Other backbones: by `saved_bytes`.
SAVED = {"iresnet50": 35.5e6, "iresnet100": 55.9e6}
_PASSES = 25  # times that the products are read or written, counted in facerec.heads.mechanism.class_sums


class Row(NamedTuple):
    """A line of the table: what, how it is computed, how much."""

    what: str
    arithmetic: str
    value: str


def rows(options: argparse.Namespace, parameters: int, multiply_adds: float) -> Iterator[Row | str]:
    """The table; a plain string begins a section."""
    o, processes, size_D = options, options.gpus, options.embedding_size
    samples = processes * o.batch
    head = HeadSize.of(o.identities, processes, sample_rate=o.sample_rate, embedding_size=size_D)
    cost = estimate(
        parameters=parameters,
        multiply_adds=multiply_adds,
        head=head,
        batch_size=o.batch,
        processes=processes,
        state_tensors=o.state_tensors,
        keep=o.memory * 1e9 / 8 if o.keep is None else o.keep,  # the rule of head.memory=auto
        half=True,
        activation=o.activation,
    )
    taking = head.taking_part(samples)
    row = 4 * size_D
    yield "sizes"
    yield Row("images a step, G", f"{processes} × {o.batch}", f"{samples:,}")
    yield Row("class rows a GPU, R", f"⌈{o.identities:,} / {processes}⌉", f"{head.rows:,}")
    yield Row("rows taking part, K", f"max(⌈{o.sample_rate:g} × R⌉, G), R at most", f"{taking:,}")
    yield Row("steps an epoch", f"{o.images:,} / G", f"{o.images // samples:,}")

    yield "memory of a GPU"
    yield from memory(o, cost, parameters, head.rows, taking, samples, row)
    yield Row(f"in all, of {o.memory:g} GB", "sum", size(cost.memory))

    yield "sent by a GPU each step (rings; P−1 of P parts)"
    arithmetic = {
        "backbone": f"2 × {_share(processes)} × 4 B × {parameters:,}",
        "embeddings, all-gather": f"{_share(processes)} × {samples:,} × {size_D} × 4 B",
        "labels": f"{_share(processes)} × {samples:,} × 8 B",
        "3 reductions": f"2 × {_share(processes)} × {samples:,} × 8 × 4 B",
        "3 gradients": f"{_share(processes)} × {samples:,} × 3 × 4 B",
        "embeddings' gradients": f"{_share(processes)} × {samples:,} × {size_D} × 4 B",
    }
    for name, sent in cost.wire.items():
        yield Row(name, next(text for key, text in arithmetic.items() if name.startswith(key)), size(sent))
    yield Row("in all", "sum", size(cost.sent))

    yield "time of a step"
    times = step_times(o, cost, taking, samples)
    yield from times
    step = sum(float(one.value.removesuffix(" ms")) for one in times) / 1e3
    rate = samples / step
    yield Row("a step", "sum", f"{step * 1e3:.0f} ms")
    yield Row("images a second", f"G / {step * 1e3:.0f} ms", f"{rate:,.0f}, {rate / processes:,.0f} a GPU")
    yield Row("an epoch", f"{o.images:,} / {rate:,.0f}", hours(o.images / rate))
    yield Row(
        f"{o.epochs:g} epochs", f"{o.epochs:g} × {hours(o.images / rate)}", hours(o.epochs * o.images / rate)
    )

    yield "checkpoint (checkpoints/last-STEP)"
    copies = 1 + o.state_tensors
    whole = copies * 4 * (o.identities * size_D + parameters)
    mine = copies * 4 * head.rows * size_D
    yield Row("on disk", f"{copies} × 4 B × ({o.identities:,} × {size_D} + {parameters:,})", size(whole))
    yield Row("written by a GPU's process", f"{copies} × 4 B × R × {size_D}", size(mine))
    yield Row(
        "time", f"{size(whole)} / {o.storage:g} GB/s to the file system", f"{whole / o.storage / 1e9:.1f} s"
    )
    yield Row(
        "a stop in the background",
        f"{size(mine)} / {o.pcie:g} GB/s to main memory",
        f"{mine / o.pcie / 1e6:.0f} ms",
    )


def memory(
    o: argparse.Namespace, cost: Cost, parameters: int, held: int, taking: int, samples: int, row: int
) -> Iterator[Row]:
    """The parts of a GPU's memory."""
    copies, sampled = 1 + o.state_tensors, cost.sampled_copies > 0
    yield Row("class weights", f"R × {row:,} B", size(cost.head_weights))
    yield Row("their momentum", f"{o.state_tensors} × R × {row:,} B", size(cost.head_state))
    yield Row("their gradient", f"{'K' if sampled else 'R'} × {row:,} B", size(cost.head_gradients))
    if sampled:
        text = f"{copies} × K × {row:,} B"
        yield Row("sampled rows, copied for the optimizer", text, size(cost.sampled_copies))
    if cost.logits:
        yield Row("products kept", f"K × {samples:,} × 4 B", size(cost.logits))
    else:
        yield Row("products kept", f"none: K × {samples:,} × 4 B are computed again", size(0))
    yield Row("blocks of products at work", "3 × 256 MiB at most", size(cost.block))
    yield Row(
        "embeddings of all, unit vectors, gradients", f"4 × {samples:,} × {row:,} B", size(cost.embeddings)
    )
    weights = f"{1 + copies} × 4 B × {parameters:,}"
    yield Row("backbone: weights, gradient, momentum", weights, size(cost.backbone))
    yield Row("its bf16 weights under autocast", f"2 B × {parameters:,}", size(cost.backbone_copies))
    yield Row("its activations", f"{o.batch} × {size(o.activation)}", size(cost.activations))


def step_times(o: argparse.Namespace, cost: Cost, taking: int, samples: int) -> list[Row]:
    """What a step waits for; of the all-reduce of the backbone's gradients, which runs beside its backward
    pass, only what takes longer than that.
    """
    wire = dict(cost.wire)
    reduced = wire.pop("backbone's gradients, all-reduce", 0.0)
    rest = sum(wire.values())
    backbone = cost.backbone_flops / (o.peak * o.mfu * 1e12)
    products = cost.head_flops / (o.fp32 * o.fp32_use * 1e12)
    passes = _PASSES * 4.0 * taking * samples / (o.bandwidth * 1e12)
    exposed = max(0.0, reduced / (o.network * 1e9) - backbone * 2 / 3)
    latency = 8 * o.latency * 1e-6 if cost.wire else 0.0

    def row(what: str, arithmetic: str, seconds: float) -> Row:
        return Row(what, arithmetic, f"{seconds * 1e3:.1f} ms")

    flops, head = f"{cost.backbone_flops / 1e12:.3g} TFLOP", f"{cost.head_flops / 1e12:.3g} TFLOP"
    return [
        row("backbone, bf16", f"{flops} / ({o.mfu:g} × {o.peak:g} TFLOP/s)", backbone),
        row("products of the head, fp32", f"{head} / ({o.fp32_use:g} × {o.fp32:g} TFLOP/s)", products),
        row("passes over the products", f"{_PASSES} × K × G × 4 B / {o.bandwidth:g} TB/s", passes),
        row(
            "exchange of the head",
            f"{size(rest)} / {o.network:g} GB/s + 8 × {o.latency:g} µs",
            rest / (o.network * 1e9) + latency,
        ),
        row(
            "all-reduce beyond the backward pass",
            f"{size(reduced)} / {o.network:g} GB/s − 2/3 of the backbone",
            exposed,
        ),
    ]


def _share(processes: int) -> str:
    return f"{processes - 1}/{processes}"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"


def saved_bytes(name: str, embedding_size: int) -> float:
    """Bytes that autograd saves of one image for the backward pass, in bf16; see `SAVED`.

    Counted on tensors without memory, where autocast does not work: as if all of it were in bf16.
    """
    import torch

    from facerec.backbones import create_backbone
    from facerec.backbones.flops import activation_bytes

    with torch.device("meta"):
        backbone = create_backbone(name, embedding_size=embedding_size).train()
    return activation_bytes(backbone, half=True)


def whole(text: str) -> int:
    """10e6 as well as 10000000."""
    number = float(text)
    if number < 1 or number != math.floor(number):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(number)


def share(text: str) -> float:
    """A number in (0, 1]."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return float(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="plan",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--gpus", type=whole, default=64, help="processes")
    add("--identities", type=whole, default=10_000_000, help="classes")
    add("--images", type=whole, default=200_000_000, help="images of the data set")
    add("--epochs", type=float, default=20)
    add("--backbone", default="iresnet100")
    add("--embedding-size", type=whole, default=512)
    add("--batch", type=whole, default=128, help="images of a GPU")
    add("--sample-rate", type=share, default=1.0, help="head.sample_rate")
    add("--state-tensors", type=int, default=1, help="tensors of the optimizer a parameter: SGD 1, AdamW 2")
    add(
        "--keep",
        action=argparse.BooleanOptionalAction,
        help="keep the products; without: as head.memory=auto",
    )
    add("--activation", type=float, help="bytes the backward pass needs of an image; without: counted")
    add("--memory", type=float, default=80, help="GB of a GPU")
    add("--peak", type=float, default=312, help="TFLOP/s in bf16 (A100, data sheet)")
    add("--mfu", type=share, default=0.19, help="part of it that the backbone reaches")
    add("--fp32", type=float, default=19.5, help="TFLOP/s in fp32 without TF32 (A100, data sheet)")
    add("--fp32-use", type=share, default=0.8, help="part of it that large products reach")
    add("--bandwidth", type=float, default=2.0, help="TB/s of the GPU's memory (A100 80 GB, data sheet)")
    add("--network", type=float, default=20, help="GB/s a GPU sends to the next machine (HDR InfiniBand: 25)")
    add("--latency", type=float, default=100, help="µs of a collective")
    add("--storage", type=float, default=10, help="GB/s of the shared file system, all together")
    add("--pcie", type=float, default=20, help="GB/s from a GPU to main memory")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    import torch

    from facerec.backbones import create_backbone
    from facerec.backbones.flops import multiply_adds
    from facerec.errors import FacerecError

    try:
        with torch.device("meta"):
            backbone = create_backbone(options.backbone, embedding_size=options.embedding_size)
    except FacerecError as error:
        print(f"plan: {error}", file=sys.stderr)
        return error.exit_status
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    operations = multiply_adds(backbone)
    if options.activation is None:
        known = SAVED.get(options.backbone) if options.embedding_size == 512 else None
        options.activation = known or saved_bytes(options.backbone, options.embedding_size)
    print(
        f"{options.gpus} GPUs, {options.identities:,} identities, {options.backbone} "
        f"({parameters:,} parameters, {operations / 1e9:.2f} G multiply-adds an image)"
    )
    table = list(rows(options, parameters, operations))
    lines = [one for one in table if isinstance(one, Row)]
    first = max(len(one.what) for one in lines)
    second = max(len(one.arithmetic) for one in lines)
    for one in table:
        if isinstance(one, Row):
            print(f"  {one.what:<{first}}  {one.arithmetic:<{second}}  {one.value}")
        else:
            print(f"\n{one}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
