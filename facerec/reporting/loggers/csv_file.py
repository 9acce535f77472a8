"""metrics.csv: a row per logged step and per evaluation, a column per number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from facerec.files import replacing
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger, numbers_of_run
from facerec.training.reporter import Run

if TYPE_CHECKING:
    from facerec.evaluation.verify import VerificationResult


@LOGGERS.register("csv")
class CsvFile(Logger):
    """The rows of metrics.jsonl as a table; written whole with each checkpoint, as columns may be added."""

    writes = "metrics.csv"

    def started(self, run: Run) -> None:
        self._rows: list[dict[str, Any]] = []
        self._known = run.position.evaluated
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [{key: x for key, x in row.items() if x} for row in csv.DictReader(file)]
            for row in rows:  # those beyond are made anew
                last = self._known if "mean/accuracy" in row else run.position.step
                if int(row["step"]) <= last:
                    self._rows.append(row)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        self._rows.append(dict(row))

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        progress = run.progress()
        if progress.step != self._known:  # else a finished run that is started again
            self._rows.append({"step": progress.step, "epoch": progress.epoch} | numbers_of_run(run, results))

    def saving(self, run: Run) -> None:
        self._write()

    def finished(self, run: Run) -> None:
        self._write()

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())
