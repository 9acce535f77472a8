"""Marks on the fields of settings, beside their types: what a resumed run may do with them.

A field ``log_every: Free[int] = 20`` may differ from the checkpoint's; one without a mark may not.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


class AtResume(Enum):
    """Changes of a setting that a resumed run may have."""

    FREE = "changes nothing of what is learnt"
    APPLIED = "applied from here on, and logged"
    LENGTH = "as APPLIED; a greater one lets a run go on that has ended"
    MEASURE = "as APPLIED; accuracies before and after it cannot be compared"


Free = Annotated[T, AtResume.FREE]
Applied = Annotated[T, AtResume.APPLIED]
Length = Annotated[T, AtResume.LENGTH]
Measure = Annotated[T, AtResume.MEASURE]


def marks(settings: Callable[..., Any]) -> dict[str, AtResume]:
    """Return the marks on the annotations of a class or function, by name of the setting."""
    return {
        name: mark
        for name, hint in typing.get_type_hints(settings, include_extras=True).items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, AtResume)
    }
