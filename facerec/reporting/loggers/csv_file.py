"""metrics.csv: a row per logged step and per evaluation, a column per number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from facerec.files import write_bytes
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.metrics_file import MetricsFile, step_of
from facerec.training.reporter import Run


@LOGGERS.register("csv")
class CsvFile(MetricsFile):
    """The rows of metrics.jsonl as a table; written whole with each checkpoint, as columns may be added."""

    writes = "metrics.csv"

    def started(self, run: Run) -> None:
        self._known = run.position.evaluated
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        rows = [{key: x for key, x in row.items() if x} for row in csv.DictReader(lines)]
        self._rows: list[Mapping[str, Any]] = [
            row for row in rows if step_of(row, self._known) <= run.position.step
        ]

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        self._rows.append(row)

    def saving(self, run: Run) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_bytes(self.path, text.getvalue().encode())

    finished = saving
