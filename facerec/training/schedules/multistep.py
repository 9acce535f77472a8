"""Drops of the learning rate at milestones."""

from __future__ import annotations

from dataclasses import dataclass

from facerec.errors import require
from facerec.training.schedules import SCHEDULES, Schedule


@SCHEDULES.register("multistep")
@dataclass(frozen=True)
class MultiStep(Schedule):
    """gamma^(milestones passed).

    Args:
        milestones: in `unit`; positive and ascending.
        gamma: factor at each milestone, in (0, 1].
    """

    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = (
            sorted(set(self.milestones)) == list(self.milestones) and min(self.milestones, default=1) > 0
        )
        require(ascending, "schedule.milestones", list(self.milestones), "must be positive and ascending")
        require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "must be above 0 and at most 1")

    def beyond(self, end: float) -> list[str]:
        late = [f"{milestone:g}" for milestone in self.milestones if milestone >= end * (1 - 1e-9)]
        said = f"schedule.milestones=[{','.join(late)}] ({self.unit}; there are {end:.4g}): no drop comes"
        return super().beyond(end) + ([said] if late else [])

    def course(self, now: float, done: float) -> float:
        # Epochs are sums of fractions: a milestone counts as reached within a rounding error.
        return self.gamma ** sum(now >= milestone - 1e-9 * milestone for milestone in self.milestones)
