"""metrics.jsonl: one JSON object per logged step."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any

from facerec.files import replacing
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.training.reporter import Run


@LOGGERS.register("metrics")
class MetricsFile(Logger):
    """One JSON object per logged step, appended to metrics.jsonl; a resumed run drops the rows it makes anew.

    At any moment the file holds complete rows: each is one write, and rows are dropped by replacing the file.
    """

    writes = "metrics.jsonl"

    def started(self, run: Run) -> None:
        rows = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        kept = [row for row in rows if row.endswith(b"\n") and _step_of(row) <= run.position.step]
        if len(kept) < len(rows):
            with replacing(self.path) as file:
                file.writelines(kept)
        self._file = self.path.open("ab", buffering=0)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        line, end = json.dumps(row, allow_nan=False).encode() + b"\n", os.fstat(self._file.fileno()).st_size
        if self._file.write(line) != len(line):  # the disk is full
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finished(self, run: Run) -> None:
        self._file.close()


def _step_of(row: bytes) -> float:
    """The step of a row of metrics.jsonl; one that was cut off in writing counts as beyond any."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
