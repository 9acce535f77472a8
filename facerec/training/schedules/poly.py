"""Polynomial decay of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from facerec.settings import BelowOne, Positive
from facerec.training.schedules import SCHEDULES, Progress, Schedule


@SCHEDULES.register("poly")
@dataclass(frozen=True)
class Poly(Schedule):
    """(1 − done)^power, down to `final`.

    Args:
        power: above 0.
        final: the last factor, in [0, 1).
        released: as InsightFace's program counts: step t of w warm-up steps has factor t/w, but the very
            first 1, and the decay begins where the warm-up ends.
    """

    power: Positive = 2.0
    final: BelowOne = 0.0
    released: bool = False

    def course(self, now: float, done: float) -> float:
        return self.final + (1 - self.final) * (1 - done) ** self.power

    def factor(self, progress: Progress) -> float:
        now = progress.epoch if self.unit == "epochs" else float(progress.step)
        if not self.released or not self.warmup:
            return super().factor(progress)
        if now <= self.warmup:
            return now / self.warmup or 1.0
        warm = self.warmup / (now / progress.fraction)  # the fraction of the run
        return self.course(now, (min(progress.fraction, 1.0) - warm) / (1 - warm))
