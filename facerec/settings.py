"""What a field of settings may hold and when it may change, written beside its type.

``log_every: Free[Count] = 20`` is 1 or more, and a resumed run may have another than its checkpoint; a
setting without such a mark may not differ.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from facerec.errors import ConfigError, require, setting_text

T = TypeVar("T")
Kind = TypeVar("Kind")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


class Range(NamedTuple):
    """Values that a setting may have, the hint where it has another, and what is meant by some of those."""

    contains: Callable[[Any], bool]
    hint: str
    meant: Callable[[Any], str] = lambda value: ""

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` unless the setting `key` (``head.m``) is in the range."""
        if not self.contains(value):
            raise ConfigError(key, value, self.hint + self.meant(value))


Positive = Annotated[float, Range(lambda x: x > 0, "must be greater than 0")]
NotNegative = Annotated[float, Range(lambda x: x >= 0, "must be 0 or more")]
BelowOne = Annotated[float, Range(lambda x: 0 <= x < 1, "must be from 0 to below 1")]
Count = Annotated[int, Range(lambda n: 1 <= n <= 10**10, "must be 1 or more, and at most 10,000,000,000")]
CountOrNull = Annotated[
    int | None, Range(lambda n: n is None or 1 <= n <= 10**10, "must be 1 or more (at most 10^10), or null")
]

_UpTo1024 = Range(lambda n: n is None or 1 <= n <= 1024, "must be 1 or more, and at most 1,024")
Few = Annotated[int, _UpTo1024]
FewOrNull = Annotated[int | None, _UpTo1024]


def check_ranges(settings: Any, section: str) -> None:
    """Raise `ConfigError` for the first field of a dataclass out of its range, or none of its choices."""
    for name, limits in _annotated(type(settings), Range):
        limits.check(f"{section}.{name}", getattr(settings, name))
    hints = typing.get_type_hints(type(settings))
    for name in (field.name for field in dataclasses.fields(settings)):
        value, choices = getattr(settings, name), _choices(hints[name])
        words = ", ".join(map(setting_text, choices))
        require(not choices or value in choices, f"{section}.{name}", value, f"must be one of {words}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return all values of a type that lists them: a `Literal`, bool, None and unions of those; else none."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return parts
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        listed = [_choices(part) for part in parts]
        return sum(listed, ()) if all(listed) else ()
    return {bool: (True, False), types.NoneType: (None,)}.get(hint, ())


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
    return dict(_annotated(settings, AtResume))


def _annotated(settings: Callable[..., Any], kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    for name, hint in typing.get_type_hints(settings, include_extras=True).items():
        yield from ((name, part) for part in getattr(hint, "__metadata__", ()) if isinstance(part, kind))
