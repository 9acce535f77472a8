"""Half a cosine wave."""

from __future__ import annotations

import math
from dataclasses import dataclass

from facerec.settings import BelowOne
from facerec.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """(1 + cos(π · done)) / 2, down to `final`.

    Args:
        final: the last factor, in [0, 1).
    """

    final: BelowOne = 0.0

    def course(self, now: float, done: float) -> float:
        return self.final + (1 - self.final) * (1 - math.cos(math.pi * (1 - done))) / 2
