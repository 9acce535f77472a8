"""Polynomial decay of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from facerec.errors import require
from facerec.training.schedules import SCHEDULES, Schedule, require_final


@SCHEDULES.register("poly")
@dataclass(frozen=True)
class Poly(Schedule):
    """(1 − done)^power, down to `final`.

    Args:
        power: above 0.
        final: the last factor, in [0, 1).
    """

    power: float = 2.0
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power > 0, "schedule.power", self.power, "must be greater than 0")
        require_final(self.final)

    def course(self, now: float, done: float) -> float:
        return self.final + (1 - self.final) * (1 - done) ** self.power
