"""What follows a training run for its user: console lines, metrics.jsonl, TensorBoard, result files."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from facerec.evaluation.results import results_document, write_results
from facerec.files import replacing
from facerec.models.checkpoint import path_at
from facerec.reporting.loggers.profile import Profile
from facerec.reporting.run_folder import file_only, require_written
from facerec.reporting.verification_figures import figures_of, save_figures
from facerec.training.reporter import Reporter, Run

if TYPE_CHECKING:
    from facerec.evaluation.verify import VerificationResult

log = logging.getLogger(__name__)


def run_reporters(folder: Path, *, figures: bool = True, profile: bool = False) -> list[Reporter]:
    """Everything that a run leaves in its output folder besides checkpoints and the log."""
    return [
        Console(),
        MetricsFile(folder / "metrics.jsonl"),
        TensorBoard(folder),
        ResultFiles(folder, figures),
        *([Profile(folder / "profile")] if profile else []),
    ]


class Console(Reporter):
    """A progress bar on a terminal, a line every `trainer.log_every` steps elsewhere and in the log file."""

    def started(self, run: Run) -> None:
        self._began, self._share = time.perf_counter(), run.progress().fraction
        terminal = sys.stderr.isatty()
        self._stack = contextlib.ExitStack()
        self._bar: Any = None
        if terminal:
            self._stack.enter_context(logging_redirect_tqdm())
            # The bar counts thousandths of the run: epochs or steps, whichever ends it first.
            shape = "{percentage:3.0f}%|{bar}| {postfix}"
            self._bar = self._stack.enter_context(tqdm(total=1.0, bar_format=shape, dynamic_ncols=True))

    def stepped(self, run: Run) -> None:
        require_written()
        if self._bar is not None:
            self._bar.update(min(1.0, run.progress().fraction) - self._bar.n)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        left = self._time_left(run.progress().fraction)
        speed = f"{row['samples_per_second']:,.0f} samples/s"
        text = f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  lr {row['lr']:.4g}  {speed}  {left} left"
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        machine = f"{row['tflops']:.3g} TFLOP/s ({row['mfu']:.0%})  " if row.get("mfu") else ""
        machine += f"{row['peak_memory']:.1f} GB at most"
        line = f"step {row['step']}  {text}  accuracy {row.get('accuracy') or 0.0:.3f}  {machine}"
        (log if self._bar is None else file_only).info("%s", line)

    def finished(self, run: Run) -> None:
        self._stack.close()
        if run.loader.skipped:
            log.warning("%d images that do not decode were skipped", run.loader.skipped)

    def _time_left(self, whole: float) -> str:
        done = whole - self._share
        seconds = (time.perf_counter() - self._began) * (1 - whole) / done if done > 0 else 0.0
        minutes, seconds = divmod(max(0, round(seconds)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class MetricsFile(Reporter):
    """One JSON object per logged step, appended to a file; a resumed run drops the rows it makes anew.

    At any moment the file holds whole rows: each is one write, and rows are dropped by replacing the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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


class TensorBoard(Reporter):
    """Scalars of every logged row, accuracies and images of every evaluation."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tensorboard"

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
            for key in ("accuracy", "best_threshold", "xnorm", "auc", "eer"):
                value = getattr(result, key)
                if value is not None:
                    self._writer.add_scalar(f"{name}/{key}", value, step)
            if run.eval_settings.figures:
                for kind, figure in figures_of(name, result).items():
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


class ResultFiles(Reporter):
    """results.json and the images of the last evaluation."""

    def __init__(self, folder: Path, figures: bool) -> None:
        self.path = folder
        self.figures = figures
        self.written: list[Path] = []

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        kept = path_at(run.checkpoints, run.position.step, sharded=bool(run.head.sharded_parameters))
        document = results_document(results, run.model(), ckpt=str(kept))
        results_file = self.path / "results.json"
        self.written = [write_results(results_file, document | {"highest": run.position.highest})]
        if self.figures:
            for name, result in results.items():
                self.written += save_figures(self.path, name, result)

    def finished(self, run: Run) -> None:
        for path in self.written:
            log.info("wrote %s", path)


def _step_of(row: bytes) -> float:
    """The step of a row of metrics.jsonl; one that was cut off in writing counts as beyond any."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
