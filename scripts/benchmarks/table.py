"""Rows with floor and reference, their table, and measurements of time and memory, for all benchmarks."""

import gc
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from facerec.device import wait_for

CPU = torch.device("cpu")


@dataclass
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        value: in `unit`.
        unit: ``s``, ``ms``, ``MB``, ``img/s``, …
        floor: the least (or for a rate, the most) that the hardware allows, measured in the same run.
        reference: the common implementation's value, measured in the same run.
    """

    name: str
    value: float
    unit: str
    floor: float | None = None
    reference: float | None = None

    def json(self) -> dict[str, Any]:
        """The row with value ÷ floor and value ÷ reference, null without them."""
        return {
            **asdict(self),
            "ratio_to_floor": self.value / self.floor if self.floor else None,
            "ratio_to_reference": self.value / self.reference if self.reference else None,
        }


def show(rows: Iterable[Row], path: Path | None) -> None:
    """Print rows as they come, and write them to the JSON file `path`, if any, at the end."""
    kept = []
    print(f"{'':56} {'value':>12} {'floor':>12} {'reference':>12} {'/ floor':>9} {'/ ref.':>9}")
    for row in rows:
        made = row.json()
        kept.append(made)
        amounts = " ".join(f"{_number(made[key]):>12}" for key in ("value", "floor", "reference"))
        ratios = " ".join(f"{_number(made[f'ratio_to_{key}']):>9}" for key in ("floor", "reference"))
        print(f"{row.name + ', ' + row.unit:56} {amounts} {ratios}", flush=True)
    if path is not None:
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"wrote {path}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def best(
    work: Callable[[], object],
    repeats: int = 3,
    before: Callable[[], object] | None = None,
    device: torch.device = CPU,
) -> float:
    """Return the seconds of the fastest of several calls: other work on the machine only adds to them."""
    fastest = float("inf")
    for _ in range(repeats):
        if before is not None:
            before()
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def in_processes(work: Callable[..., Any], *arguments: Any, count: int = 1) -> list[Any]:
    """Return the results of `work(*arguments)` in `count` fresh processes that live side by side."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    queue = context.Queue()
    workers = [context.Process(target=_call, args=(queue, barrier, work, arguments)) for _ in range(count)]
    for worker in workers:
        worker.start()
    results = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return results


def _call(queue: Any, barrier: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = work(*arguments)  # a callable result measures once all processes hold theirs
    barrier.wait()
    queue.put(result() if callable(result) else result)
    barrier.wait()


def proportional_memory() -> float:
    """Return this process's memory in MB, pages of n processes counted as 1/n (Linux: PSS)."""
    return _kilobytes("smaps_rollup", "Pss") / 1e3


def peak_memory(work: Callable[[], object], device: torch.device = CPU) -> float:
    """Return the MB that `work` needs at most above what was there before it, on a GPU or in Linux."""
    gc.collect()
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    before = _kilobytes("status", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    work()
    return (_kilobytes("status", "VmHWM") - before) / 1e3


def _kilobytes(file: str, key: str) -> float:
    for line in Path("/proc/self", file).read_text().splitlines():
        if line.startswith(f"{key}:"):
            return float(line.split()[1])
    raise OSError(f"no {key} in /proc/self/{file}")
