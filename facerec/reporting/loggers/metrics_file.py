"""metrics.jsonl: one JSON object per logged step, and one per evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from facerec.files import append_line, replacing
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger, numbers_of_run
from facerec.training.reporter import Run

if TYPE_CHECKING:
    from facerec.evaluation.verify import VerificationResult


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
        kept = [
            row for row in rows if row.endswith(b"\n") and _step_of(row, self._known) <= run.position.step
        ]
        if len(kept) < len(rows):
            with replacing(self.path) as file:
                file.writelines(kept)
        self.path.touch()

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        append_line(self.path, json.dumps(row, allow_nan=False).encode())

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        progress = run.progress()
        if progress.step != self._known:  # else a finished run that is started again
            self.logged(run, {"step": progress.step, "epoch": progress.epoch} | numbers_of_run(run, results))


def _step_of(row: bytes, evaluated: int) -> float:
    """The step of a row of metrics.jsonl; one that was cut off in writing, or of an evaluation later than the
    last that the checkpoint knows, counts as beyond any.
    """
    try:
        read = json.loads(row)
        step = float(read["step"])
        return float("inf") if "mean/accuracy" in read and step > evaluated else step
    except (ValueError, KeyError, TypeError):
        return float("inf")
