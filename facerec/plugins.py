"""Modules outside of this package that register heads, backbones, data sources, protocols, loggers and so on.

Two kinds: those of installed packages, which name them as entry points of the group ``facerec.plugins``, and
those that a command line names (``plugins=[my_module]``), looked for in the working directory first. A folder
``configs`` beside such a module (``configs/head/mine.yaml``, …) is searched as this package's own is.
"""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from facerec.errors import ConfigError

__all__ = ["config_folders", "hint", "load", "modules", "named", "note_origin", "use"]

_GROUP = "facerec.plugins"
_named: list[str] = []
_loaded: set[str] = set()


def use(names: Sequence[str]) -> None:
    """Add modules by name, from the working directory or where Python looks for modules.

    Raises:
        ConfigError: there is no such module.
    """
    for name in names:
        if not isinstance(name, str) or not _is_dotted(name):
            raise ConfigError("plugins", name, "must be a list of names of Python modules")
        if name in _named:
            continue
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        _folder(name)
        _named.append(name)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def named() -> list[str]:
    """Return what was added by `use`, in this order."""
    return list(_named)


def modules() -> dict[str, str]:
    """Return the modules to import, each with the beginning of messages that says where it comes from."""
    return _installed() | dict.fromkeys(_named, "")


@functools.cache
def _installed() -> dict[str, str]:
    return {
        point.value: f"of the installed package {point.dist.name if point.dist else point.name}, "
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
            reason = f"{origin}cannot be imported: {type(error).__name__}: {error}"
            raise ConfigError("plugins", name, reason) from error
        _loaded.add(name)


def hint(made_with: object = ()) -> str:
    """Return the hint for a name that nothing here has: the `plugins` of a file's settings, or any."""
    names = made_with if isinstance(made_with, list) else [made_with]
    good = [name for name in names if isinstance(name, str) and _is_dotted(name)]
    return f"if a plugin brings it, name it: plugins=[{','.join(good[:9]) or 'MODULE'}]"


def note_origin(error: BaseException) -> None:
    """Add a note to an exception that was raised in a plugin's code, or below it: which, and where."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = str(frame.f_globals.get("__name__"))
        if any(f"{name}.".startswith(f"{module}.") for module in modules()):
            where = f"{frame.f_code.co_filename}:{line}"
            error.add_note(f"This comes from the plugin {name} ({where}), not from facerec itself.")
            return


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
        origin = modules().get(name, "")
        raise ConfigError("plugins", name, f"{origin}no such module here ({Path.cwd()}) or installed")
    return Path(spec.origin).parent
