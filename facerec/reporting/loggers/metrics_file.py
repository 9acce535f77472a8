"""metrics.jsonl: one JSON object per logged step, and one per evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from facerec.files import append_line, write_bytes
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger, numbers_of_run
from facerec.training.reporter import Results, Run


@LOGGERS.register("metrics")
class MetricsFile(Logger):
    """One JSON object per logged step, and one per evaluation, whose keys are ``lfw/accuracy`` and the like
    (``ema/lfw/accuracy`` of the averaged weights).

    A resumed run drops the rows it makes anew. At any moment the file holds complete rows: each is one write,
    and rows are dropped by replacing the file.
    """

    writes = "metrics.jsonl"

    def started(self, run: Run) -> None:
        self._known = run.position.evaluated
        rows = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        kept = [row for row in rows if step_of(_read(row), self._known) <= run.position.step]
        if len(kept) < len(rows):
            write_bytes(self.path, b"".join(kept))
        self.path.touch()

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        append_line(self.path, json.dumps(row, allow_nan=False).encode())

    def evaluated(self, run: Run, results: Results) -> None:
        progress = run.progress()
        if progress.step != self._known:  # else a finished run that is started again
            self.logged(run, {"step": progress.step, "epoch": progress.epoch} | numbers_of_run(run, results))


def step_of(row: Mapping[str, Any], evaluated: int) -> float:
    """Return the step of a row; of an evaluation beyond the last that the checkpoint knows, infinity."""
    step = float(row["step"])
    return math.inf if "mean/accuracy" in row and step > evaluated else step


def _read(line: bytes) -> Mapping[str, Any]:
    """Return a row of metrics.jsonl; one that was cut off in writing counts as beyond any step."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
        return {**row, "step": float(row["step"])}
    except (ValueError, KeyError, TypeError):
        return {"step": math.inf}
