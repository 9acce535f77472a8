"""TensorBoard: scalars of every logged row, numbers and figures of every evaluation."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.training.reporter import Run

if TYPE_CHECKING:
    from facerec.evaluation.verify import VerificationResult


@LOGGERS.register("tensorboard")
class TensorBoard(Logger):
    """Scalars of every logged row, numbers and figures of every evaluation."""

    writes = "tensorboard"

    def started(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run has written beyond its last checkpoint comes again, and readers shall drop it.
        self._writer = SummaryWriter(str(self.path), purge_step=run.position.step + 1)
        self._known = run.position.evaluated
        # Its thread prints a traceback where it cannot write; the next call here raises the same error.
        self._excepthook = threading.excepthook
        threading.excepthook = self._unless_storage

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if value is not None and name != "step":
                self._writer.add_scalar(f"train/{name}", value, row["step"])

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        step = run.position.step
        if step == self._known:  # a finished run that is started again
            return
        for name, result in results.items():
            of_set = {number.key: number.value for number in result.numbers()}
            of_set |= {"best_threshold": result.best_threshold, "xnorm": result.xnorm}
            for key, value in of_set.items():
                if value is not None:
                    self._writer.add_scalar(f"{name}/{key}", value, step)
        for name, figures in self.figures.of(results).items() if run.eval_settings.figures else ():
            for kind, figure in figures.items():
                self._writer.add_figure(f"{name}/{kind}", figure, step)

    def saving(self, run: Run) -> None:
        self._writer.flush()

    def finished(self, run: Run) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._excepthook

    def _unless_storage(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self._excepthook(args)
