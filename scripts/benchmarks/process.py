"""A step of training with the memory and the waiting threads of a command, against the C libraries' defaults.

Each way has fresh processes, in turn; the fastest of its steps counts. The same is measured beside a process
that keeps one core busy, where the median counts. Page faults are those of one step after the first half.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Row

DEFAULTS = {"FACEREC_ALLOCATOR": "system", "GOMP_SPINCOUNT": None}
OURS = {"FACEREC_ALLOCATOR": "keep", "GOMP_SPINCOUNT": "1000"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="mobilefacenet", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=30, help="images per step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of each process (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    title = f"{options.backbone} {options.precision}, B={options.batch}"
    for beside, busy in (("", False), (", beside a busy process", True)):
        taken: dict[str, list[float]] = {"ours": [], "defaults": []}
        faults: dict[str, list[int]] = {"ours": [], "defaults": []}
        with _busy_process(busy):
            for _ in range(options.rounds):
                for way, environment in (("ours", OURS), ("defaults", DEFAULTS)):
                    ran = _run(options, environment)
                    taken[way] += ran["seconds"]
                    faults[way] += ran["faults"]
        typical = statistics.median if busy else min
        ours, common = (options.batch / typical(taken[way]) for way in ("ours", "defaults"))
        yield Row(f"{title}{beside}", ours, "img/s", reference=common)
        if not busy:
            yield Row("page faults of a step", max(faults["ours"]), "", reference=max(faults["defaults"]))


@contextlib.contextmanager
def _busy_process(wanted: bool) -> Iterator[None]:
    """A process that keeps one core busy meanwhile."""
    process = multiprocessing.Process(target=_spin, daemon=True)
    if wanted:
        process.start()
    try:
        yield
    finally:
        if wanted:
            process.terminate()
            process.join()


def _spin() -> None:
    for _ in itertools.count():
        pass


def _run(options: argparse.Namespace, environment: dict[str, str | None]) -> dict[str, list]:
    """Return what `_measure` prints in a process with this environment."""
    variables = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    command = [sys.executable, __file__, json.dumps(vars(options), default=str)]
    ran = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def _measure(options: argparse.Namespace) -> None:
    """Print the seconds and page faults of the later half of the steps."""
    from facerec.process import keep_memory

    keep_memory()
    import torch
    from step import build_trainer

    torch.set_num_threads(options.threads)
    options.classes, options.device = 1000, torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="facerec-benchmark-") as folder:
        trainer, batches = build_trainer(options.backbone, options, Path(folder))
        seconds, faults = [], []
        for batches_of_step in batches:
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            trainer.step(batches_of_step)
            seconds.append(time.perf_counter() - began)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    half = len(seconds) // 2
    print(json.dumps({"seconds": seconds[half:], "faults": faults[half:]}))


if __name__ == "__main__":
    _measure(argparse.Namespace(**json.loads(sys.argv[1])))
