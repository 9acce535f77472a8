"""A head over two processes: class rows sharded and sampled, against all rows in every process.

Time and memory of forward and backward of a global batch of 256. The floor of the time is the bare matrix
products on the same cores in one process; that of the memory, one process's part of the gradient. The
reference is the common way: every process has all class weights and the full one-hot logits of its half of
the batch, and the gradients of the weights are averaged.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from head import BATCH, SIZE, arcface, floor, problem
from table import Row, best, peak_memory
from torch import Tensor

from facerec.heads import create_head

PROCESSES = 2
WAYS = {"reference": 1.0, "sharded": 1.0, "sharded, recomputed": 1.0, "sharded, 0.1 sampled": 0.1}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", default="10572,85742", help="with commas")
    parser.add_argument("--rounds", type=int, default=5, help="measurements; the fastest counts")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(PROCESSES)
    for classes in (int(number) for number in options.classes.split(",")):
        weight_CD, embedding_BD, _ = problem(classes)
        floor_s = best(floor(weight_CD, embedding_BD), options.rounds)
        results = {way: measure(way, classes, options.rounds) for way in WAYS}
        reference = results.pop("reference")
        for way, (seconds, megabytes, _) in results.items():
            name = f"arcface C={classes}, {PROCESSES} processes, {way}"
            yield Row(name, seconds, "s", floor=floor_s * WAYS[way], reference=reference[0])
            part = 4 * classes * SIZE / 1e6 / PROCESSES * WAYS[way]
            yield Row(f"{name}, peak memory each", megabytes, "MB", floor=part, reference=reference[1])
        sharded = results["sharded"]
        if abs(sharded[2] - reference[2]) > 1e-3:
            raise SystemExit(f"scale: the losses differ: {sharded[2]} and {reference[2]}")


def measure(way: str, classes: int, rounds: int) -> tuple[float, float, float]:
    """Return the seconds of a step, the larger of the processes' peak MB, and the loss."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, way, classes, rounds)
        torch.multiprocessing.spawn(_work, arguments, nprocs=PROCESSES)
        seconds, megabytes, losses = zip(
            *(torch.load(f"{folder}/{r}.pt") for r in range(PROCESSES)), strict=True
        )
    return max(seconds), max(megabytes), sum(losses) / PROCESSES


def _work(rank: int, folder: str, way: str, classes: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    half = BATCH // PROCESSES
    own = slice(rank * half, (rank + 1) * half)
    _make_step(way, 512, own)()  # loads libraries, starts threads
    step = _make_step(way, classes, own)
    losses: list[float] = []
    megabytes = peak_memory(lambda: losses.append(step()))
    seconds = best(lambda: (step(), dist.barrier()), rounds, dist.barrier)
    torch.save((seconds, megabytes, losses[0]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _make_step(way: str, classes: int, own: slice) -> Callable[[], float]:
    weight_CD, embedding_BD, label_B = problem(classes)
    embedding_BD = embedding_BD[own].clone().requires_grad_()
    step = _reference(weight_CD) if way == "reference" else _ours(way, classes, weight_CD)
    return lambda: step(embedding_BD, label_B[own])


def _ours(way: str, classes: int, weight_CD: Tensor) -> Any:
    memory = "recompute" if "recomputed" in way else "keep"
    settings: dict[str, Any] = {"memory": memory, "sample_rate": WAYS[way]}
    head = create_head("arcface", num_classes=classes, embedding_size=SIZE, sharded=True, **settings)
    head.weight = torch.nn.Parameter(weight_CD[head.shard.start : head.shard.stop].clone())

    def step(embedding_BD: Tensor, label_B: Tensor) -> float:
        head.weight.grad = embedding_BD.grad = None
        loss = head(embedding_BD, label_B).loss
        loss.backward()
        head.weight.grad = embedding_BD.grad = None  # every round allocates again, as the first did
        return float(loss.detach())

    return step


def _reference(weight_CD: Tensor) -> Any:
    weight = torch.nn.Parameter(weight_CD.clone())

    def step(embedding_BD: Tensor, label_B: Tensor) -> float:
        weight.grad = embedding_BD.grad = None
        loss = arcface(embedding_BD, weight, label_B)
        loss.backward()
        assert weight.grad is not None
        dist.all_reduce(weight.grad)
        weight.grad /= PROCESSES
        weight.grad = embedding_BD.grad = None
        return float(loss.detach())

    return step
