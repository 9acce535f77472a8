"""One learning rate throughout."""

from __future__ import annotations

from dataclasses import dataclass

from facerec.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """Factor 1."""

    def course(self, now: float, done: float) -> float:
        return 1.0
