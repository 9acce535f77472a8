"""Warnings of a loss that leads nowhere: exactly 0, that of guessing, or flat from its start."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from facerec import distributed
from facerec.training.reporter import Reporter, Run

log = logging.getLogger(__name__)

_CAUSES = {
    "has been exactly 0, and nothing is learnt,": (
        "batches without two images of one identity (data.shuffle=identity brings them together); "
        "a margin that every pair keeps already"
    ),
    "has stayed at {loss:.4g}, that of guessing,": (
        "labels that do not belong to the images; embeddings all alike after too high an optimizer.lr; "
        "input.mean and input.std of other images"
    ),
    "has not left its start, {loss:.4g},": (
        "an optimizer.lr far too low or too high; backbone.frozen; head.s or head.m too large; labels that "
        "do not belong to the images"
    ),
}
_ZERO, _GUESS, _START = _CAUSES


class Plateau(Reporter):
    """Warns of a plateau, by the rows of the log alone, so that nothing waits for a device.

    A plateau lasts a tenth of the run, within 200 and 2,000 steps; a loss of 0 from the first step to the
    last is one in any run. Each plateau is named once.
    """

    def started(self, run: Run) -> None:
        self.guess = math.inf  # a head without class weights compares images with each other
        if hasattr(run.head, "weight"):
            self.guess = math.log(run.head.num_classes * run.head.sample_rate)  # type: ignore[operator]
        self.begin = self._last_step = run.position.step
        self._last_lr = 0.0
        self._since: dict[str, float] = {}  # the step from which the loss is where it stays; inf: said
        # Steps and losses since the end of warm-up; None: the loss has moved, or has begun before this part.
        self._start: list[tuple[int, float]] | None = None if self.begin else []

    staged = started  # another loss

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        step, loss, done = row["step"], row.get("loss"), run.progress().fraction
        if loss is None:
            return
        long = min(max(step / max(done, 1e-9) / 10, 200), 2000)
        near = {_ZERO: loss == 0, _GUESS: abs(loss - self.guess) < 0.005 * self.guess}
        for kind, there in near.items():
            if not there:
                self._since.pop(kind, None)
                continue
            since = self._since.setdefault(kind, self._last_step)
            if step - since >= long or (kind == _ZERO and since == self.begin and done >= 1):
                self._warn(kind, step, since, loss)
        self._look_at_start(step, row["lr"], loss, row.get("accuracy"), long)
        self._last_step, self._last_lr = step, row["lr"]

    def _look_at_start(self, step: int, lr: float, loss: float, accuracy: float | None, long: float) -> None:
        if self._start is None:
            return
        if lr > self._last_lr * 1.001:  # warm-up goes on
            self._start.clear()
            return
        self._start.append((step, loss))
        begin = self._start[0][0]
        if step - begin < long:
            return
        middle = begin + long / 2
        halves = [[x for at, x in self._start if (at <= middle) is early] for early in (True, False)]
        first, second = (sum(half) / max(len(half), 1) for half in halves)
        self._start = None
        if first > 0 and abs(second / first - 1) < 0.01 and (accuracy or 0) < 0.5:
            self._warn(_START, step, begin, second)

    def _warn(self, kind: str, step: int, since: float, loss: float) -> None:
        self._since[kind] = math.inf
        if distributed.rank() == 0:
            stays, causes = kind.format(loss=loss), _CAUSES[kind]
            log.warning("step %d: the loss %s since step %d. Usual causes: %s", step, stays, since, causes)
