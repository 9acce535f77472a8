"""A step of training with the memory and the waiting threads of a command, against the C libraries' defaults.

Each way has fresh processes, in turn; the fastest of its steps counts. The same is measured beside a process
that keeps one core busy, where the median counts. Page faults are those of one step after the first half.

And the starts of commands, in processor time: `--help`, and a training until its first step is done, whose
floor is to load torch.
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

PARTS = ("start", "step")
DEFAULTS = {"FACEREC_ALLOCATOR": "system", "GOMP_SPINCOUNT": None}
OURS = {"FACEREC_ALLOCATOR": "keep", "GOMP_SPINCOUNT": "1000"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument("--backbone", default="mobilefacenet", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=30, help="images per step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of each process (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    if options.only != "step":
        yield from start_rows(options.rounds)
    if options.only != "start":
        yield from step_rows(options)


def start_rows(rounds: int) -> Iterator[Row]:
    """Measure the starts of commands, by turns."""
    train = [sys.executable, "-c", "from facerec.cli.train import main; main()"]
    with tempfile.TemporaryDirectory(prefix="facerec-benchmark-") as folder:
        first = "backbone=mobilefacenet data=synthetic data.identities=4 data.images=8 trainer.batch_size=2"
        first += f" trainer.max_steps=1 eval.targets=[] trainer.resume=null output_dir={folder}/"
        ways = {
            "torch": lambda _: _processor_seconds([sys.executable, "-c", "import torch"]),
            "help": lambda _: _processor_seconds([*train, "--help"]),
            "step": lambda number: _processor_seconds([*train, *f"{first}{number}".split()], "step 1 of 1"),
        }
        seconds = {name: min(way(number) for number in range(rounds)) for name, way in ways.items()}
    yield Row("facerec-train --help, processor time", seconds["help"], "s")
    title = "facerec-train until the first step is done, processor time"
    yield Row(title, seconds["step"], "s", seconds["torch"])


def _processor_seconds(command: list[str], line: str | None = None) -> float:
    """Return the processor time of a command until it prints a line that begins so, or ends."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for printed in process.stdout:
            if line is not None and printed.startswith(line):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                seconds = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
                process.stdout.read()
                return seconds
        usage = os.wait4(process.pid, 0)[2]
        process.returncode = 0
    if line is not None:
        raise RuntimeError(f"{command} has not printed {line!r}")
    return usage.ru_utime + usage.ru_stime


def step_rows(options: argparse.Namespace) -> Iterator[Row]:
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
