"""What follows a run: the interface between the loop and progress bars, metric files and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facerec.evaluation.verification import VerificationResult
    from facerec.training.loop import Trainer


class Reporter:
    """Follows a run. Each event does nothing by default; a subclass takes those that it wants."""

    def started(self, trainer: Trainer) -> None:
        """Before the first step."""

    def stepped(self, trainer: Trainer) -> None:
        """After every step; must not wait for the device."""

    def logged(self, trainer: Trainer, row: Mapping[str, Any]) -> None:
        """A row of metrics, as metrics.jsonl has it."""

    def evaluated(self, trainer: Trainer, results: Mapping[str, VerificationResult]) -> None:
        """After an evaluation."""

    def finished(self, trainer: Trainer) -> None:
        """After the last step, also where the run failed or was interrupted."""
