"""Polynomial decay of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from facerec.settings import BelowOne, Positive
from facerec.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("poly")
@dataclass(frozen=True)
class Poly(Schedule):
    """(1 − done)^power, down to `final`.

    Args:
        power: above 0.
        final: the last factor, in [0, 1).
    """

    power: Positive = 2.0
    final: BelowOne = 0.0

    def course(self, now: float, done: float) -> float:
        return self.final + (1 - self.final) * (1 - done) ** self.power
