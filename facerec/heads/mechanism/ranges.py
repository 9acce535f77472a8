"""Ranges of settings, written beside their defaults (``m: AngularMargin = 0.5``)."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from facerec.errors import require


class Range(NamedTuple):
    """Values that a setting may have, and the hint where it has another."""

    contains: Callable[[Any], bool]
    hint: str

    def check(self, name: str, value: object) -> None:
        """Raise `ConfigError` unless ``head.NAME`` is in the range."""
        require(self.contains(value), f"head.{name}", value, self.hint)


ANGULAR_MARGIN = Range(lambda m: 0 <= m <= math.pi / 2, "an angular margin must be from 0 to π/2 (radians)")
COSINE_MARGIN = Range(lambda m: 0 <= m < 2, "a cosine margin must be from 0 to below 2")

AngularMargin = Annotated[float, ANGULAR_MARGIN]
CosineMargin = Annotated[float, COSINE_MARGIN]
Angle = Annotated[float, Range(lambda a: 0 <= a <= math.pi, "must be an angle from 0 to π (radians)")]
Positive = Annotated[float, Range(lambda x: x > 0, "must be greater than 0")]
NotNegative = Annotated[float, Range(lambda x: x >= 0, "must be 0 or more")]
Fraction = Annotated[float, Range(lambda x: 0 < x < 1, "must be greater than 0 and less than 1")]
Momentum = Annotated[float, Range(lambda x: 0 < x <= 1, "a momentum must be greater than 0 and at most 1")]
Rate = Annotated[float, Range(lambda x: 0 < x <= 1, "must be above 0 and at most 1")]
Count = Annotated[int, Range(lambda n: n >= 1, "must be 1 or more")]
CountOrNull = Annotated[int | None, Range(lambda n: n is None or n >= 1, "must be 1 or more, or null")]


def check_ranges(settings: object) -> None:
    """Raise `ConfigError` for the first annotated setting of `settings` that is out of its range."""
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, Range):
                part.check(name, getattr(settings, name))
