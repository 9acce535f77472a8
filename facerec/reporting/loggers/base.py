"""The base of all loggers: where they write, and the figures of an evaluation, drawn once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from facerec.training.reporter import Reporter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from facerec.evaluation.verify import VerificationResult


class Figures:
    """Figures of the newest evaluation by target and kind, drawn when the first logger asks for them."""

    def __init__(self) -> None:
        self._results: Mapping[str, VerificationResult] = {}
        self._drawn: dict[str, dict[str, Figure]] = {}

    def of(self, results: Mapping[str, VerificationResult]) -> dict[str, dict[str, Figure]]:
        """Return the figures of `results`."""
        if results is not self._results:
            from facerec.reporting.verification_figures import figures_of  # slow to load

            self._results = results
            self._drawn = {name: figures_of(name, {name: result}) for name, result in results.items()}
        return self._drawn


class Logger(Reporter):
    """A reporter that a configuration can choose; further keyword parameters of a subclass are its settings.

    Args:
        folder: the run's.
        figures: shared by all loggers of the run.

    Attributes:
        writes: the file or folder in the run's folder that it writes; empty: none.
    """

    writes: ClassVar[str] = ""

    def __init__(self, *, folder: Path, figures: Figures) -> None:
        self.folder, self.figures = folder, figures
        if self.writes:
            self.path = folder / self.writes
