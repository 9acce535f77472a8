"""The interface between the loop and progress bars, metric files and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from facerec.errors import StorageError
from facerec.evaluation.verify import VerificationResult
from facerec.files import storing

if TYPE_CHECKING:
    from facerec.training.loop import Trainer

Results = Mapping[str, VerificationResult]
"""Of an evaluation, by set."""

Run: TypeAlias = "Trainer"
"""A trainer as reporters see it: they look at it, and change nothing."""


class Reporter:
    """Follows a run. Each event does nothing by default; a subclass takes those that it wants."""

    path = Path("standard output")  # what it writes, for the message where that fails

    def started(self, run: Run) -> None:
        """Before the first step."""

    def stepped(self, run: Run) -> None:
        """After every step; must not wait for the device."""

    def staged(self, run: Run) -> None:
        """After a stage has begun, with other settings and parts."""

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        """At each row of metrics, as metrics.jsonl has it."""

    def evaluated(self, run: Run, results: Results) -> None:
        """After an evaluation."""

    def saving(self, run: Run) -> None:
        """Before a checkpoint is written: what is held back must be written now, or a kill loses it."""

    def finished(self, run: Run) -> None:
        """After the last step, also where the run failed or was interrupted."""


def notify(reporters: list[Reporter], run: Run, event: str, *details: Any) -> StorageError | None:
    """Pass an event on to all reporters that could start; return the first failed write."""
    first = None
    for reporter in list(reporters):
        try:
            with storing(reporter.path):
                getattr(reporter, event)(run, *details)
        except StorageError as error:
            if event == "started":
                reporters.remove(reporter)
            first = first or StorageError(f"{error}; the run stops at step {run.position.step}")
        except BaseException:
            if event == "started":  # those that have not started cannot finish
                del reporters[reporters.index(reporter) :]
            raise
    return first
