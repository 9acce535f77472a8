"""report.html: the run on one page, written anew at each evaluation and at the end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from facerec.files import write_bytes
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.reporting.record import RunRecord
from facerec.training.reporter import Results, Run

if TYPE_CHECKING:
    from facerec.reporting.evaluated import Evaluated

log = logging.getLogger(__name__)


@LOGGERS.register("report")
class RunReport(Logger):
    """The run on one page; its curves are the rows of metrics.jsonl, which `metrics` writes before it."""

    writes = "report.html"

    def started(self, run: Run) -> None:
        self._evaluated: Evaluated | None = None
        self.figures.watch(run)

    def evaluated(self, run: Run, results: Results) -> None:
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
        from facerec.reporting.run_report import run_html  # slow to load

        batch_BHWC, figures = self.figures.first_batch(run), run.eval_settings.figures
        html = run_html(RunRecord(self.folder), self._evaluated, batch_BHWC, run.input, figures=figures)
        write_bytes(self.path, html.encode())
