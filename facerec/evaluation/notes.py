"""Notes on results: what a reader of the numbers has to know."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from facerec import distributed

logger = logging.getLogger("facerec.evaluation")


class Caution(str):
    """A note that questions the numbers themselves."""

    __slots__ = ()


def warn(note: str, name: str = "") -> list[str]:
    """Log a caution on rank 0, of the test `name`, and return it as the notes of a result."""
    if distributed.rank() == 0:
        logger.warning("%s", f"{name}: {note}" if name else note)
    return [Caution(note)]


def unsupported(values: Mapping[str, float | None], what: str, count: int, of: str) -> list[str]:
    """A note on the values that are None for want of trials."""
    missing = [key for key, value in values.items() if value is None]
    return [f"{what} {', '.join(missing)} needs more than the {count} {of}"] if missing else []
