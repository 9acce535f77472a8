"""Console: a progress bar on a terminal, lines elsewhere and in the log file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from facerec.errors import counted
from facerec.evaluation.results import Result, log_notes
from facerec.progress import Bar, shows_bars
from facerec.reporting.evaluated import Evaluated, by_one_yardstick
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.reporting.run_folder import file_only, require_written
from facerec.reporting.tables import screen_table
from facerec.training.reporter import Results, Run

log = logging.getLogger(__name__)
_Named = tuple[str, Mapping[str, Result]]


@LOGGERS.register("console")
class Console(Logger):
    """A progress bar on a terminal, a line every `trainer.log_every` steps elsewhere and in the log file."""

    def started(self, run: Run) -> None:
        self._began, self._done_before = time.perf_counter(), run.progress().fraction
        self._stack = contextlib.ExitStack()
        self._bar: Any = None
        self._said: set[tuple[str, str]] = set()
        self._first: _Named | None = None  # the evaluation before the first step
        self._last: _Named | None = None
        self._steps = run.steps()
        if shows_bars():
            self._stack.enter_context(logging_redirect_tqdm())
            # The bar counts thousandths of the run: epochs or steps, whichever ends it first.
            shape = "{percentage:3.0f}%|{bar:24}| {desc}"
            self._bar = self._stack.enter_context(Bar(total=1.0, bar_format=shape, dynamic_ncols=True))

    def stepped(self, run: Run) -> None:
        require_written()
        if self._bar is not None:
            self._bar.update(min(1.0, run.progress().fraction) - self._bar.n)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        left = self._time_left(run.progress().fraction)
        speed = f"{row['samples_per_second']:,.0f} samples/s"
        step = f"step {row['step']:,} of {max(self._steps, row['step']):,}"
        loss, accuracy = f"loss {row['loss']:.4f}", f"accuracy {row.get('accuracy') or 0.0:.3f}"
        lr = f"lr {row['lr']:.4g}"
        if self._bar is not None:
            self._bar.set_description_str(f"{step}  {loss}  {accuracy}  {left} left  {lr}  {speed}")
        machine = f"{row['tflops']:.3g} TFLOP/s ({row['mfu']:.0%})  " if row.get("mfu") else ""
        machine += f"peak {row['peak_memory']:.1f} GB"
        numbers = f"epoch {row['epoch']:.2f}  {loss}  {lr}  {speed}  {left} left  {accuracy}"
        (log if self._bar is None else file_only).info("%s  %s  %s", step, numbers, machine)

    def evaluated(self, run: Run, results: Results) -> None:
        log_notes(results, self._said)
        step = run.position.step
        if step:
            self._last = f"step {step}", results
        else:
            self._first = "before training", results

    def finished(self, run: Run) -> None:
        self._stack.close()
        if self._first and self._last:
            both = [Evaluated(*shown, {}, []) for shown in (self._first, self._last)]
            for line in screen_table(by_one_yardstick(both)).splitlines():
                log.info(line)
        if run.loader.skipped:
            log.warning("%s skipped, because not decoded", counted(run.loader.skipped, "image"))

    def _time_left(self, done: float) -> str:
        here = done - self._done_before
        seconds = (time.perf_counter() - self._began) * (1 - done) / here if here > 0 else 0.0
        minutes, seconds = divmod(max(0, round(seconds)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
