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
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from facerec.errors import ConfigError

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

UP_TO_1024 = Range(lambda n: n is None or 1 <= n <= 1024, "must be 1 or more, and at most 1,024")
Few = Annotated[int, UP_TO_1024]
FewOrNull = Annotated[int | None, UP_TO_1024]


def check_ranges(settings: Any, section: str) -> None:
    """Raise `ConfigError` for the first field of a dataclass out of its range, or none of its choices."""
    for name, limits in _annotated(type(settings), Range):
        limits.check(f"{section}.{name}", getattr(settings, name))
    hints = typing.get_type_hints(type(settings))
    for name in (field.name for field in dataclasses.fields(settings)):
        if _lists_its_values(hints[name]):
            converted(f"{section}.{name}", getattr(settings, name), hints[name])


def _lists_its_values(hint: Any) -> bool:
    """Return True for `Literal`, bool, None and unions of those."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return all(map(_lists_its_values, typing.get_args(hint)))
    return origin is Literal or hint in (bool, types.NoneType)


def converted(key: str, value: Any, hint: Any) -> Any:
    """Return `value` in the type `hint` (an int becomes a float if one is wanted); raise `ConfigError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return converted(key, value, option)
            except ConfigError as error:  # of one in a list, or of a number that is not finite
                if error.hint != f"must be {spoken(option)}" and not isinstance(value, str):
                    raise
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (list, tuple):
        if isinstance(value, str) and value:
            raise ConfigError(key, value, f"must be a list: '{key}=[{value}]'")
        if isinstance(value, list | tuple):
            item = arguments[0] if arguments else Any
            return origin(converted(f"{key}[{i}]", one, item) for i, one in enumerate(value))
    elif origin is dict or hint is dict:
        if isinstance(value, Mapping):
            item = arguments[1] if arguments else Any
            return {name: converted(f"{key}.{name}", one, item) for name, one in value.items()}
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) <= 1e12:
                return float(value)
            raise ConfigError(key, value, "must be a finite number, from -1e12 to 1e12")
    elif hint is int:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
        if number and value == int(value):
            return int(value)
    elif hint is types.NoneType:
        if value is None:
            return None
    elif isinstance(value, hint):
        return value
    raise ConfigError(key, value, f"must be {spoken(hint)}")


def spoken(hint: Any) -> str:
    """Return a type hint in words: ``one of fp32, bf16, fp16``, ``a number or null``."""
    words = {float: "a number", int: "an integer", bool: "true or false", str: "text", types.NoneType: "null"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(spoken(option) for option in arguments)
    if origin in (list, tuple):
        return "a list"
    if origin is dict or hint is dict:
        return "a mapping"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


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
