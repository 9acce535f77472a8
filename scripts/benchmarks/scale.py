"""A head over two processes: class rows shared out and sampled, against every process having all of them.

Time and memory of forward and backward of one batch of 256 that the processes bring together. The floor of
the time are the bare matrix products on the same cores in one process; of the memory, a process's part of the
gradient. The reference is the usual way: every process has all class weights and whole one-hot logits of its
half of the batch, and the gradients of the weights are averaged.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from head import BATCH, SIZE, _status, arcface, floor, problem
from table import Row
from torch import Tensor

from facerec.heads import create_head

PROCESSES = 2
WAYS = {"reference": 1.0, "shared out": 1.0, "shared out, recomputed": 1.0, "shared out, 0.1 sampled": 0.1}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", default="10572,85742", help="with commas")
    parser.add_argument("--rounds", type=int, default=5, help="measurements in turn; the best counts")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(PROCESSES)
    for classes in (int(number) for number in options.classes.split(",")):
        least = _quickest_floor(classes, options.rounds)
        found = {way: measured(way, classes, options.rounds) for way in WAYS}
        reference = found.pop("reference")
        for way, (seconds, megabytes, _) in found.items():
            name = f"arcface C={classes}, {PROCESSES} processes, {way}"
            yield Row(name, seconds, "s", floor=least * WAYS[way], reference=reference[0])
            part = 4 * classes * SIZE / 1e6 / PROCESSES * WAYS[way]
            yield Row(f"{name}, peak memory each", megabytes, "MB", floor=part, reference=reference[1])
        difference = abs(found["shared out"][2] - reference[2])
        if difference > 1e-3:
            raise SystemExit(f"scale: the losses differ: {found['shared out'][2]} and {reference[2]}")


def _quickest_floor(classes: int, rounds: int) -> float:
    weight_CD, embedding_BD, _ = problem(classes)
    step = floor(weight_CD, embedding_BD)
    quickest = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        quickest = min(quickest, time.perf_counter() - start)
    return quickest


def measured(way: str, classes: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of a step, the larger of the processes' MB above what was there before it, and the loss."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, way, classes, rounds)
        torch.multiprocessing.spawn(_work, arguments, nprocs=PROCESSES)
        found: list[tuple[float, float, float]] = [torch.load(f"{folder}/{r}.pt") for r in range(PROCESSES)]
    loss = sum(one[2] for one in found) / PROCESSES
    return max(one[0] for one in found), max(one[1] for one in found), loss


def _work(rank: int, folder: str, way: str, classes: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    half = BATCH // PROCESSES
    own = slice(rank * half, (rank + 1) * half)
    _prepared(way, 512, own)()  # libraries load, threads start
    step = _prepared(way, classes, own)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    loss = step()
    extra = (_status("VmHWM") - before) / 1e3
    quickest = float("inf")
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        step()
        dist.barrier()
        quickest = min(quickest, time.perf_counter() - start)
    torch.save((quickest, extra, loss), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _prepared(way: str, classes: int, own: slice) -> Callable[[], float]:
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
        seen = float(loss.detach())
        head.weight.grad = embedding_BD.grad = None  # every round allocates anew, as the first did
        return seen

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
        seen = float(loss.detach())
        weight.grad = embedding_BD.grad = None
        return seen

    return step
