"""Learning-rate schedules by name, one per module: functions of the progress, with no state to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from facerec.registry import Registry
from facerec.settings import NotNegative, check_ranges

if TYPE_CHECKING:
    from facerec.training.stages import Stage

__all__ = ["SCHEDULES", "Progress", "Schedule", "beyond_the_run"]

SCHEDULES = Registry("schedule", "facerec.training.schedules")


class Progress(NamedTuple):
    """Progress of a training.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done, with fractions, so that the world size does not matter.
        fraction: of the run that is done, from 0; 1 and above is the end.
        stride: fraction of an epoch in one step.
    """

    step: int
    epoch: float
    fraction: float
    stride: float

    def since(self, start: Progress) -> Progress:
        """Return the progress of what is left of a run after `start`, as if it were a run of its own."""
        done = (self.fraction - start.fraction) / (1 - start.fraction)
        return Progress(self.step - start.step, self.epoch - start.epoch, done, self.stride)


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate, as a factor on `optimizer.lr`; a subclass says `course`.

    Args:
        unit: what `warmup`, and what a subclass counts, are given in.
        warmup: linear rise from 0 over so many units; of w steps, the first have factors 1/w, 2/w, …

    Raises:
        ConfigError: for a value out of range.
    """

    unit: Literal["epochs", "steps"] = "epochs"
    warmup: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "schedule")

    def course(self, now: float, done: float) -> float:
        """Return the factor without warm-up, at `now` units, when the fraction `done` of the run is over."""
        raise NotImplementedError

    def beyond(self, end: float) -> list[str]:
        """Say which settings lie beyond `end` units, where the run ends or gets another schedule."""
        if self.warmup <= end:
            return []
        rises = f"the learning rate rises to the end, to {end / self.warmup:.2g} of optimizer.lr at most"
        return [f"schedule.warmup={self.warmup:g} ({self.unit}; there are {end:.4g}): {rises}"]

    def factor(self, progress: Progress) -> float:
        """Return what to multiply the learning rates with for the next step."""
        epochs = self.unit == "epochs"
        now = progress.epoch if epochs else float(progress.step)
        factor = self.course(now, min(progress.fraction, 1.0))
        if now >= self.warmup:
            return factor
        return factor * min(1.0, (now + (progress.stride if epochs else 1.0)) / self.warmup)


def beyond_the_run(plan: Sequence[Stage], counts: Sequence[int], accumulate: int) -> list[str]:
    """Say what of the schedules of a run no step will see.

    Args:
        plan: the stages of the run; one that changes nothing of the schedule goes on with that before.
        counts: the steps after which each begins, and at last that of the whole run.
        accumulate: batches in a step.
    """
    found: list[str] = []
    length = {"steps": 0.0, "epochs": 0.0}
    for number in reversed(range(len(plan))):
        stage, steps = plan[number], counts[number + 1] - counts[number]
        length["steps"] += steps
        length["epochs"] += steps / math.ceil(stage.loader.batches_per_epoch() / accumulate)
        if not number or stage.reschedules:
            found = stage.schedule.beyond(length[stage.schedule.unit]) + found
            length = dict.fromkeys(length, 0.0)
    return found
