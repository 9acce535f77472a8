"""Ranges of the settings of heads, written beside their defaults (``m: AngularMargin = 0.5``)."""

from __future__ import annotations

import math
from typing import Annotated

from facerec.settings import Count as Count
from facerec.settings import CountOrNull as CountOrNull
from facerec.settings import NotNegative as NotNegative
from facerec.settings import Positive as Positive
from facerec.settings import Range as Range


def _of_degrees(angle: float) -> str:
    return f"; {angle:g}° are {math.radians(angle):.4g}" if math.pi < angle <= 180 else ""


ANGULAR_MARGIN = Range(
    lambda m: 0 <= m <= math.pi / 2, "an angular margin must be from 0 to π/2 (radians)", _of_degrees
)
COSINE_MARGIN = Range(lambda m: 0 <= m < 2, "a cosine margin must be from 0 to below 2")

AngularMargin = Annotated[float, ANGULAR_MARGIN]
CosineMargin = Annotated[float, COSINE_MARGIN]
Angle = Annotated[
    float, Range(lambda a: 0 <= a <= math.pi, "must be an angle from 0 to π (radians)", _of_degrees)
]
Fraction = Annotated[float, Range(lambda x: 0 < x < 1, "must be greater than 0 and less than 1")]
Momentum = Annotated[float, Range(lambda x: 0 < x <= 1, "a momentum must be greater than 0 and at most 1")]
Rate = Annotated[float, Range(lambda x: 0 < x <= 1, "must be above 0 and at most 1")]
CosineOrNull = Annotated[
    float | None, Range(lambda x: x is None or 0 < x <= 1, "must be a cosine above 0 and at most 1, or null")
]
