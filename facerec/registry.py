"""Builders by name, with their parameters checked: how heads, backbones, data sources and settings are made.

A registry belongs to one package and is filled by that package's own modules and by plugins, so that adding a
head is a file. The parameters of a builder are the annotated parameters of its signature. `build` checks
names and types against it, the builder itself checks ranges (`facerec.errors.require`).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from facerec import plugins
from facerec.errors import ConfigError, nearest
from facerec.settings import Range, converted, spoken

T = TypeVar("T")


class Registry:
    """Names to builders of one kind (``"head"``), found in the modules of one package.

    Args:
        kind: what is registered; also the config group, so that errors read ``head=arcfase: …``.
        package: dotted name of the package whose modules register themselves when imported.
        others: dotted names of further modules that do.
    """

    def __init__(self, kind: str, package: str, *others: str) -> None:
        self.kind = kind
        self.package = package
        self._others = others
        self._builders: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `names`."""

        def keep(builder: T) -> T:
            for name in names:
                known = self._builders.setdefault(name, builder)  # type: ignore[arg-type]
                if known is not builder:
                    raise ValueError(f"{self.kind} {name!r} is registered twice")
            return builder

        return keep

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        self._load()
        return sorted(self._builders)

    def builder(self, name: str) -> Callable[..., Any]:
        """Return the builder called `name`; raise `ConfigError` with the nearest known name."""
        if isinstance(name, str):
            self._load(name)
        if not isinstance(name, str) or name not in self._builders:
            self._load()
            kind = self.kind.rpartition(".")[2].removesuffix("s")
            known = nearest(str(name), self._builders)
            raise ConfigError(self.kind, name, f"no such {kind}; {known}; {plugins.hint()}")
        return self._builders[name]

    def create(self, name: str, given: Mapping[str, Any] | None = None, /, **context: Any) -> Any:
        """Build `name` from user parameters `given` and the caller's own `context` arguments."""
        return build(self.builder(name), self.kind, given or {}, **context)

    def from_section(self, section: Mapping[str, Any], /, **context: Any) -> Any:
        """Build the ``name`` of a configuration section from its other keys."""
        if section.get("name") is None:
            known = ", ".join(self.names())
            raise ConfigError(f"{self.kind}.name", None, f"must name one; known: {known}")
        given = {key: value for key, value in section.items() if key != "name"}
        return self.create(section["name"], given, **context)

    def _load(self, wanted: str | None = None) -> None:
        """Import modules until `wanted` is registered, those first that it begins with; None: all."""
        if not self._loaded and (wanted is None or wanted not in self._builders):
            package = importlib.import_module(self.package)
            names = [f"{self.package}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
            begins = tuple(name for name in names if (wanted or "").startswith(name.rpartition(".")[2]))
            for name in (*begins, *names, *self._others):
                if wanted is not None and wanted in self._builders:
                    break
                importlib.import_module(name)
            else:
                self._loaded = True
        plugins.load()


def build(builder: Callable[..., T], section: str, given: Mapping[str, Any], /, **context: Any) -> T:
    """Call `builder(**context, **given)` after checking `given` against its signature.

    Args:
        builder: a class, dataclass or function with annotated keyword parameters.
        section: config section for messages: key ``m`` of section ``head`` is reported as ``head.m``.
        given: the user's parameters; names in `context` may not be given again.
        context: arguments that the caller supplies and that are not settings.

    Raises:
        ConfigError: for an unknown name, a missing one, or a value of the wrong type.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(section, given, "must be a section of settings")
    hints, required = _settings_of(builder)
    settable = [name for name in hints if name not in context]
    checked: dict[str, Any] = {}
    for name, value in given.items():
        key = f"{section}.{name}" if section else name
        if name not in settable:
            raise ConfigError(key, value, f"no such setting; {nearest(name, settable)}")
        checked[name] = converted(key, value, hints[name])
    for name in settable:
        if name in required and name not in checked:
            raise ConfigError(f"{section}.{name}" if section else name, "", "must be given")
    return builder(**context, **checked)


def defaults(builder: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a builder's settings by name, of those that have one."""
    given = {name: p.default for name, p in inspect.signature(builder).parameters.items()}
    if dataclasses.is_dataclass(builder):  # a default that is made anew each time
        made = [(f.name, f.default_factory) for f in dataclasses.fields(builder)]
        given |= {name: make() for name, make in made if make is not dataclasses.MISSING}
    return {name: value for name, value in given.items() if value is not inspect.Parameter.empty}


def spoken_settings(builder: Callable[..., Any]) -> dict[str, str]:
    """Return type and range of each of a builder's settings in words: ``a number, greater than 0``."""
    found = {}
    for name, hint in _settings_of(builder, extras=True)[0].items():
        kind, *notes = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        ranges = [note.hint.removeprefix("must be ") for note in notes if isinstance(note, Range)]
        found[name] = ", ".join([spoken(kind), *ranges])
    return found


def _settings_of(builder: Callable[..., Any], *, extras: bool = False) -> tuple[dict[str, Any], set[str]]:
    """Return the parameters of a builder with their types, and the names of those without default.

    ``**options: Unpack[SomeTypedDict]`` counts as the parameters that the typed dictionary names.
    """
    parameters = inspect.signature(builder).parameters
    # Of a dataclass, each field is annotated in the module of the class that has it.
    hinted = (
        builder.__init__ if inspect.isclass(builder) and not dataclasses.is_dataclass(builder) else builder
    )
    hints = typing.get_type_hints(hinted, include_extras=extras)
    settings: dict[str, Any] = {}
    required = set()
    for name, parameter in parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for named in typing.get_args(hint):  # none, where it is for the caller alone
                settings |= typing.get_type_hints(named, include_extras=extras)
            continue
        settings[name] = hint
        if parameter.default is inspect.Parameter.empty:
            required.add(name)
    return settings, required
