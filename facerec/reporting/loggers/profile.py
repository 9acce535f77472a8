"""Profile of a training step: a table of its phases, and a trace of every operation."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from facerec.device import wait_for
from facerec.files import write_bytes
from facerec.reporting.loggers import LOGGERS
from facerec.reporting.loggers.base import Logger
from facerec.training.reporter import Results, Run

log = logging.getLogger(__name__)

SKIPPED = 3  # steps before: memory is allocated and kernels are chosen
TIMED = 10
TRACED = 3  # of the steps after those; a trace of more is too large to look at

PHASES = ("data", "forward", "head", "backward", "optimizer", "other")


@LOGGERS.register("profile")
class Profile(Logger):
    """Measures steps 4 … 13 of a run by phase and traces the three that follow; writes both to a folder.

    While it measures, every phase waits for the device, so that its time is its own; these steps are a little
    slower than the others. The trace (``trace.json``, for chrome://tracing or Perfetto) is taken without
    waiting.

    ``data`` is what passes from one step to the next until the backbone begins: waiting for a batch, and
    sending and preparing it. ``backward`` reaches from the end of the head to the optimizer, so it has the
    exchange with other ranks and the norm of the gradients in it.
    """

    writes = "profile"

    def started(self, run: Run) -> None:
        self._device = run.device
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = self._timed = 0
        self._mark: float | None = None
        self._profiler: torch.profiler.profile | None = None
        self._ended = self._evaluation = 0.0
        self._watch(run)

    def staged(self, run: Run) -> None:
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._watch(run)

    def _watch(self, run: Run) -> None:
        # The phase that has ended when a hook is called.
        ends: list[tuple[Callable[..., RemovableHandle], str]] = [
            (run.embed.register_forward_pre_hook, "data"),
            (run.embed.register_forward_hook, "forward"),
            (run.head.register_forward_pre_hook, "forward"),
            (run.head.register_forward_hook, "head"),
            (run.optimizer.register_step_pre_hook, "backward"),
            (run.optimizer.register_step_post_hook, "optimizer"),
        ]
        self._hooks = [register(partial(self._end, phase)) for register, phase in ends]

    def stepped(self, run: Run) -> None:
        self._end("other")
        if self._mark is not None:
            self._timed += 1
        self._steps += 1
        if self._steps == SKIPPED:
            wait_for(self._device)
            self._mark = time.perf_counter()
        elif self._timed == TIMED and self._mark is not None:
            self._mark = None
            step = self._per_step()["all"]
            log.info("profile of a step, mean of %d:", TIMED)
            for phase, mean in self._per_step().items():
                log.info("  %-10s %9.2f ms  %5.1f %%", phase, 1e3 * mean, 100 * mean / step)
            self._write()
            kinds = torch.profiler.ProfilerActivity
            cuda = [kinds.CUDA] if self._device.type == "cuda" else []
            self._profiler = torch.profiler.profile(activities=[kinds.CPU, *cuda])
            self._profiler.start()
        elif self._profiler is not None and self._steps == SKIPPED + TIMED + TRACED:
            self._end_trace()
        self._ended = time.perf_counter()

    def evaluated(self, run: Run, results: Results) -> None:
        self._evaluation = time.perf_counter() - self._ended
        log.info("profile: the evaluation took %.2f s", self._evaluation)
        if self._mark is not None:  # not part of a step
            self._mark = time.perf_counter()
        if self._timed == TIMED:
            self._write()

    def finished(self, run: Run) -> None:
        if self._profiler is not None:
            self._end_trace()
        if self._timed < TIMED:
            log.warning("profile: the run ended after %d steps; %d are needed", self._steps, SKIPPED + TIMED)
        for hook in self._hooks:
            hook.remove()

    def _end(self, phase: str, *_: Any) -> None:
        """Add the time since the last mark to `phase`."""
        if self._mark is None:
            return
        wait_for(self._device)
        now = time.perf_counter()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def _per_step(self) -> dict[str, float]:
        """Mean seconds of a step by phase, and of all phases."""
        seconds = {phase: total / TIMED for phase, total in self._seconds.items()}
        return seconds | {"all": sum(seconds.values())}

    def _write(self) -> None:
        """Write profile.json; an evaluation that comes later is added."""
        document = {"steps": TIMED, "seconds": self._per_step(), "evaluation": self._evaluation or None}
        write_bytes(self.path / "profile.json", json.dumps(document, indent=1).encode() + b"\n")

    def _end_trace(self) -> None:
        assert self._profiler is not None
        self._profiler.stop()
        path = self.path / "trace.json"
        self._profiler.export_chrome_trace(str(path))
        self._profiler = None
        log.info("profile: wrote %s and %s", self.path / "profile.json", path)
