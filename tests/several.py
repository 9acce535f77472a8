"""Several processes that know each other, for tests; started from a server that has torch loaded already."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from facerec import processes


def together(world: int, folder: Path, work: Callable[..., None], *details: object) -> None:
    """Run `work(folder, *details)`, a function of a module, in so many processes of one group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    multiprocessing.set_forkserver_preload(["facerec.training.run", "facerec.sharded_checkpoint"])
    arguments = (world, str(folder), work, *details)
    torch.multiprocessing.start_processes(_enter, arguments, nprocs=world, start_method="forkserver")


def _enter(rank: int, world: int, folder: str, work: Callable[..., None], *details: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        work(Path(folder), *details)
    finally:
        processes.quiet_group.cache_clear()
        dist.destroy_process_group()
