"""The learning rate as a pure function of how far training is: nothing to keep, nothing to restore."""

from __future__ import annotations

import math
from typing import NamedTuple

from facerec.training.settings import ScheduleSettings


class Progress(NamedTuple):
    """How far training is.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done, with fractions, so that the number of processes does not matter.
        whole: share of the run that is done, in [0, 1].
        stride: how much of an epoch one step is.
    """

    step: int
    epoch: float
    whole: float
    stride: float


def factor(settings: ScheduleSettings, progress: Progress) -> float:
    """What to multiply the learning rates with for the next step.

    ``multistep``: gamma at each milestone passed. ``poly``: (1 − whole)^power. ``cosine``: half a cosine
    wave. ``constant``: 1. Poly and cosine end at `final`. During warm-up it is multiplied with the share of
    the warm-up that the next step ends; a run that warms up w steps has rates 1/w, 2/w, … of the plain ones.
    """
    now = progress.epoch if settings.unit == "epochs" else float(progress.step)
    return _course(settings, now, progress.whole) * _warmup(settings, progress, now)


def _course(settings: ScheduleSettings, now: float, whole: float) -> float:
    if settings.name == "multistep":
        # Epochs are sums of fractions: a milestone counts as reached within a rounding error.
        passed = sum(now >= milestone - 1e-9 * milestone for milestone in settings.milestones)
        return settings.gamma**passed
    left = 1 - min(whole, 1.0)
    if settings.name == "poly":
        return settings.final + (1 - settings.final) * left**settings.power
    if settings.name == "cosine":
        return settings.final + (1 - settings.final) * (1 - math.cos(math.pi * left)) / 2
    return 1.0


def _warmup(settings: ScheduleSettings, progress: Progress, now: float) -> float:
    if now >= settings.warmup:
        return 1.0
    stride = progress.stride if settings.unit == "epochs" else 1.0
    return min(1.0, (now + stride) / settings.warmup)
