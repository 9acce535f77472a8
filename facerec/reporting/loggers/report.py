"""report.html: the run on one page, written anew at each evaluation and at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.training.reporter import Run

if TYPE_CHECKING:
    from facerec.evaluation.verify import VerificationResult
    from facerec.reporting.evaluated import Evaluated

log = logging.getLogger(__name__)


@LOGGERS.register("report")
class RunReport(Logger):
    """The run on one page; its curves are the rows of metrics.jsonl, which `metrics` writes before it."""

    writes = "report.html"

    def started(self, run: Run) -> None:
        self._evaluated: Evaluated | None = None
        self.figures.watch(run)

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        from facerec.reporting.evaluated import Evaluated

        name = f"step {run.position.step:,}"
        model = run.model()
        model.config = run.config
        self._evaluated = Evaluated.of(name, model, results)
        self._write(run)

    def finished(self, run: Run) -> None:
        if run.position.step:
            self._write(run)
            log.info("wrote %s", self.path)

    def _write(self, run: Run) -> None:
        from facerec.reporting.run_report import write_run_report  # slow to load

        batch_BHWC = self.figures.first_batch(run)
        write_run_report(
            self.folder, self._evaluated, batch_BHWC, run.input, figures=run.eval_settings.figures
        )
