"""Notes on results: what a reader of the numbers has to know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from facerec import distributed

if TYPE_CHECKING:
    from facerec.evaluation.results import Result

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


def log_notes(results: Mapping[str, Result], said: set[tuple[str, str]] | None = None) -> None:
    """Log the protocol, interval and notes that go with the numbers; cautions were logged when found.

    `said` keeps what was logged before of each test, which is left out, but for the interval.
    """
    said = set() if said is None else said
    for name, result in results.items():
        number = result.headline
        lines = [result.protocol, *(note for note in result.notes if not isinstance(note, Caution))]
        for line in lines:
            if (name, line) not in said:
                logger.info("%s: %s", name, line)
        said.update((name, line) for line in lines)
        if result.interval_over is not None and number is not None and number.interval is not None:
            found = (name, number.phrase, *number.interval, result.interval_over)
            logger.info("%s: %s %.5f to %.5f (95 %% interval over %s)", *found)
