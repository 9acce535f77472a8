"""World size and rank by the environment: torchrun and the like set it, before torch is imported."""

from __future__ import annotations

import os


def world_size() -> int:
    """Return the number of processes started together; 1 for a plain start."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0
