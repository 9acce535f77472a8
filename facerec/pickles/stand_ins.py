"""Inert objects that stand for what a pickle names, and bounds on what a pickle may hold."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from facerec.errors import DamagedDataError

OPERATIONS: Final = 2**24  # of one pickle; four million images or eight million names take fewer
NESTING: Final = 200  # levels of containers in containers
_KEY: Final = 2**16  # characters of a key: equal ones are compared
_TEXT: Final = 256  # characters of names and settings: a call takes five bytes of a file, and no long time


class Forbidden(DamagedDataError):
    """A pickle that asks for something it may not have."""


class Broken(Exception):
    """A pickle that cannot be read; the reason in the text shows nothing of its content."""


class Global:
    """A class or function that a pickle names: the name, and nothing behind it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Inert:
    """An object that a pickle asks a class or function to make: its name, arguments and state, unused."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None


def shown(name: str) -> str:
    """A name out of a file for a message: its first characters, if a terminal only prints them."""
    cut = name[:80]
    return cut if cut.isprintable() else "something without a proper name"


def key(value: Any) -> Any:
    """Stand for `value` as a key: long numbers can be made to collide, and tuples to take for ever."""
    kind = type(value)
    if kind in (str, bytes) and len(value) > _KEY:
        raise Broken(f"it has a key of {len(value):,} characters")
    plain = kind in (str, bytes, bool, Global, Inert) or value is None
    return value if plain or (kind is int and -(2**63) <= value < 2**63) else Inert(kind.__name__)


def numbers(values: Any) -> tuple[int, ...]:
    """`values`, if it is a tuple of a few numbers that are 0 or more, as sizes of tensors are."""
    short = type(values) is tuple and len(values) <= 64
    if short and all(type(one) is int and 0 <= one < 2**63 for one in values):
        return values
    raise Broken("sizes that no tensor has")


def text(value: Any) -> str:
    """`value`, if it is a short str, or the bytes of one."""
    if type(value) not in (bytes, str):
        raise Broken(f"text was expected, not {type(value).__name__}")
    if len(value) > _TEXT:
        raise Broken(f"a name of {len(value):,} characters")
    return value.decode() if type(value) is bytes else value


def check_nesting(value: Any) -> None:
    """Refuse containers that hold themselves, or each other so often that printing them takes for ever."""
    # By id: elements, those of shared containers as often as they are held; 0: not known yet.
    size: dict[int, int] = {}

    def measure(container: Any, depth: int) -> int:
        if (known := size.get(id(container))) is not None:
            if not known:
                raise Broken("a container in it holds itself")
            return known
        if depth > NESTING:
            raise Broken(f"its containers are nested more than {NESTING} deep")
        size[id(container)] = 0
        flat = container.flat if type(container) is np.ndarray else container
        inner = flat.values() if type(flat) is dict else flat
        count = len(inner) + 1
        for item in inner:
            if type(item) in (list, tuple, dict) or (type(item) is np.ndarray and item.dtype.hasobject):
                count += measure(item, depth + 1)
                if count > OPERATIONS:
                    raise Broken("its containers hold each other too often")
        size[id(container)] = count
        return count

    measure((value,), 0)


def are_settings(value: Any) -> bool:
    """Return True for values that YAML could give, of a length that messages can show."""
    match value:
        case dict():
            return all(isinstance(key, str) and are_settings(one) for key, one in value.items())
        case list() | tuple():
            return len(value) <= 10_000 and all(map(are_settings, value))
        case str():
            return len(value) <= 5000
        case int():
            return abs(value) < 2**64
    return value is None or isinstance(value, float)
