"""Modules outside of this package that register heads, backbones, data sources, protocols, loggers and so on.

Two kinds: those of installed packages, which name them as entry points of the group ``facerec.plugins``, and
those that a command line names (``plugins=[my_module]``), looked for in the working directory first. A folder
``configs`` beside such a module (``configs/head/mine.yaml``, …) is searched as this package's own is.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from facerec.errors import ConfigError

__all__ = ["config_folders", "load", "modules", "named", "use"]

_GROUP = "facerec.plugins"
_named: list[str] = []
_loaded: set[str] = set()


def use(names: Sequence[str]) -> None:
    """Add modules by name, from the working directory or where Python looks for modules.

    Raises:
        ConfigError: there is no such module.
    """
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError("plugins", name, "must be a list of names of Python modules")
        if name in _named:
            continue
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        _folder(name)
        _named.append(name)


def named() -> list[str]:
    """Return what was added by `use`, in this order."""
    return list(_named)


def modules() -> dict[str, str]:
    """Return the modules to import, each with who named it, for messages."""
    return _installed() | dict.fromkeys(_named, "plugins")


@functools.cache
def _installed() -> dict[str, str]:
    return {
        point.value: f"the installed package {point.dist.name if point.dist else point.name}"
        for point in entry_points(group=_GROUP)
    }


def load() -> None:
    """Import all modules, which register what they have; once.

    Raises:
        ConfigError: a module cannot be imported.
    """
    for name, origin in modules().items():
        if name in _loaded:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module outside of this package raises
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError("plugins", name, f"(of {origin}) cannot be imported: {reason}") from error
        _loaded.add(name)


def config_folders() -> list[Path]:
    """Return the folders ``configs`` beside the modules, where there are any."""
    folders = (_folder(name) / "configs" for name in modules())
    return [folder for folder in folders if folder.is_dir()]


def _folder(name: str) -> Path:
    """Return the folder of a module's file; the module itself is not imported."""
    try:
        spec = find_spec(name)
    except ImportError:  # a package above it is not there
        spec = None
    if spec is None or not spec.origin:
        origin = modules().get(name, "plugins")
        raise ConfigError("plugins", name, f"(of {origin}) no such module here ({Path.cwd()}) or installed")
    return Path(spec.origin).parent
