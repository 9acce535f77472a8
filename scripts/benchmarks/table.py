"""What all benchmarks share: rows with their floor and reference, a table of them, and ways to measure."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        value: how much, in `unit`.
        unit: ``s``, ``ms``, ``MB``, ``img/s``, …
        floor: the least (or for a rate, the most) that the hardware allows, measured in the same run.
        reference: what the common implementations need, measured in the same run.
    """

    name: str
    value: float
    unit: str
    floor: float | None = None
    reference: float | None = None

    def json(self) -> dict[str, Any]:
        """The row with value ÷ floor and value ÷ reference; null where there is none to compare with."""
        return {
            **asdict(self),
            "ratio_to_floor": self.value / self.floor if self.floor else None,
            "ratio_to_reference": self.value / self.reference if self.reference else None,
        }


def show(rows: Iterable[Row], path: Path | None) -> None:
    """Print rows as they come; write them to the JSON file `path` at the end, where one is given."""
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


def best(work: Callable[[], object], repeats: int = 3, before: Callable[[], object] | None = None) -> float:
    """Seconds of the quickest of several calls: other work on the machine only ever adds to it."""
    quickest = float("inf")
    for _ in range(repeats):
        if before is not None:
            before()
        start = time.perf_counter()
        work()
        quickest = min(quickest, time.perf_counter() - start)
    return quickest


def in_processes(work: Callable[..., Any], *arguments: Any, count: int = 1) -> list[Any]:
    """What `work(*arguments)` returns in `count` fresh processes that run, and stay alive, side by side."""
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
    held = work(*arguments)  # still referred to while the others are measured
    barrier.wait()
    queue.put(held() if callable(held) else held)
    barrier.wait()


def share_of_memory() -> float:
    """This process's memory in MB, pages shared by n processes counted as 1/n (Linux: PSS)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"no Pss in /proc/{os.getpid()}/smaps_rollup")
