"""World size and rank by the environment: torchrun and the like set it, before torch is imported."""

from __future__ import annotations

import os

from facerec.errors import UserError


def world_size() -> int:
    """Return the number of processes started together; 1 for a plain start."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def require_numbers() -> None:
    """Raise `UserError` where the environment says something else than numbers, or a rank beyond them."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if name in os.environ and _number(name, -1) == -1:
            raise UserError(f"{name}={os.environ[name]}: must be an integer; torchrun sets it, else unset it")
    if rank() >= world_size():
        raise UserError(f"RANK={rank()}: must be below WORLD_SIZE={world_size()}; torchrun sets both")


def _number(name: str, default: int) -> int:
    """Return a variable of the environment; `default` if it is not set, or no number."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default
