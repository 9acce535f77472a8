"""How this process was started: alone, or as one of several by torchrun or what sets its variables."""

from __future__ import annotations

import os

from facerec.errors import UserError


def launched() -> int:
    """How many processes were started together; 1 for a plain start."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def place() -> int:
    """Which of them this one is, from 0."""
    return _number("RANK", 0) if launched() > 1 else 0


def require_numbers() -> None:
    """Raise `UserError` where the environment says something else than numbers, or a rank beyond them."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if name in os.environ and _number(name, -1) == -1:
            raise UserError(
                f"{name}={os.environ[name]}: must be a whole number; torchrun sets it, else unset it"
            )
    if place() >= launched():
        raise UserError(f"RANK={place()}: must be below WORLD_SIZE={launched()}; torchrun sets both")


def _number(name: str, default: int) -> int:
    """A variable of the environment; `default` where it is not set, or no number."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default
