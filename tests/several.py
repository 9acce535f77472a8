"""Several processes that know each other, for tests; started from a server that has torch loaded already."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from facerec import distributed


def run_ranks(world: int, folder: Path, work: Callable[..., None], *details: object) -> None:
    """Run `work(folder, *details)`, a function of a module, in so many processes of one group."""
    running = start(world, folder, work, *details)
    while not running.join():
        pass


def start(world: int, folder: Path, work: Callable[..., None], *details: object) -> Any:
    """As `run_ranks`, but returns at once: a context with the ``processes``, and `join` to wait for them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    multiprocessing.set_forkserver_preload(
        ["facerec.training.run", "facerec.models.checkpoint", "facerec.cli.compose"]
    )
    arguments = (world, str(folder), work, *details)
    return torch.multiprocessing.start_processes(
        _enter, arguments, nprocs=world, join=False, start_method="forkserver"
    )


def _enter(rank: int, world: int, folder: str, work: Callable[..., None], *details: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        work(Path(folder), *details)
    finally:
        distributed.gloo_group.cache_clear()
        dist.destroy_process_group()


def train(folder: Path, runs: Mapping[str, Sequence[str]]) -> None:
    """`facerec-train` with the settings of each of `runs`, as processes of torchrun run it.

    What a rank says on standard error is in ``NAME.RANK.txt``, the exit status on its last line.
    """
    from facerec.cli.train import main

    rank, world = dist.get_rank(), dist.get_world_size()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    for name, settings in runs.items():
        sys.argv = ["facerec-train", *settings, f"output_dir={folder / name}"]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                main()
            except SystemExit as ended:
                print(ended.code, file=said)
        (folder / f"{name}.{rank}.txt").write_text(said.getvalue())
