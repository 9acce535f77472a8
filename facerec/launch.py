"""How this process was started: alone, or as one of several by torchrun or what sets its variables."""

from __future__ import annotations

import os


def launched() -> int:
    """How many processes were started together; 1 for a plain start."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def place() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if launched() > 1 else 0
