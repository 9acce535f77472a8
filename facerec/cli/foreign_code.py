"""Refuse a configuration that names code to be run: files from the web must not run anything."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from facerec import plugins
from facerec.errors import UserError

# What a configuration may have Hydra build: its launchers and sweepers, which it registers itself, and these.
_PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
_SAMPLER = re.compile(r"optuna\.samplers\.\w+Sampler")  # which Hydra's sweeper of Optuna is built with
_CALLBACKS = frozenset(
    (
        "facerec.reporting.sweep.SweepTable",
        "hydra.experimental.callbacks.LogJobReturnCallback",
        "hydra.experimental.callbacks.PickleJobInfoCallback",
    )
)
_LOGGING = frozenset(
    (
        "colorlog.ColoredFormatter",  # of Hydra's plugin hydra_colorlog
        "facerec.reporting.run_folder.LogStream",
        "logging.FileHandler",
        "logging.Formatter",
        "logging.NullHandler",
        "logging.StreamHandler",
        "logging.handlers.RotatingFileHandler",
        "logging.handlers.TimedRotatingFileHandler",
        "logging.handlers.WatchedFileHandler",
    )
)
_STREAMS = frozenset(("ext://sys.stdout", "ext://sys.stderr"))


def refuse_foreign_code(config: DictConfig) -> None:
    """Raise `UserError` where a composed configuration names code that Hydra or logging would run.

    Hydra before 1.3.6 runs whatever ``_target_`` names, ``os.system`` too; later ones all but what their own
    list of dangers has. Plugins may be named by the command line alone.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for path, key, value in entries(plain):
        if key == "_target_" and not path.startswith("hydra."):
            raise _refused(path, key, value)
    given = plain.get("plugins") or []
    for name in [given] if isinstance(given, str) else given:
        if name not in plugins.named():
            hint = "comes from a file, which may name no code to be run; give it on the command line"
            raise UserError(f"plugins={name}: {hint}")
    _refuse_code_of_hydra(config)


def entries(node: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield path, key and value of every entry of plain containers, at any depth."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield path, str(key), value
        yield from entries(value, f"{path}.{key}" if path else str(key))


def _refuse_code_of_hydra(config: DictConfig) -> None:
    job = config.hydra.job
    for name in sorted(set(map(str, job.env_set)) - set(map(str, job.env_copy))):
        raise UserError(
            f"hydra.job.env_set.{name}: a configuration may set no variables, which programs "
            "started later obey; set it where facerec is started, hydra.job.env_copy passes it on"
        )
    known = copy.deepcopy(config)
    with open_dict(known):
        known.hydra.runtime.output_dir = "/"  # not known yet; a path, whatever it will be
    for section in ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging"):
        start = f"hydra.{section}"
        try:
            if not OmegaConf.is_dict(known.hydra[section]):
                raise UserError(f"{start}={known.hydra[section]}: must be a section of settings")
            resolved = OmegaConf.to_container(known.hydra[section], resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{start}: {' '.join(str(error).split())}") from error
        for path, key, value in entries(resolved, start):
            if not _permitted(path.removeprefix(start).lstrip("."), key, value, section):
                raise _refused(path, key, value)


def _permitted(inside: str, key: str, value: Any, section: str) -> bool:
    """True for an entry that names no code, or code that is known; `inside` is where in the section it is."""
    if section.endswith("logging"):
        named = key in ("()", "class", "queue", "listener")
        external = str(value).startswith(("ext://", "cfg://"))
        return str(value) in (_LOGGING if named else _STREAMS) or not (named or external)
    if key != "_target_":
        return True
    if section == "callbacks":
        return "." not in inside and value in _CALLBACKS
    if section == "sweeper" and inside.partition(".")[0] == "sampler":
        return _SAMPLER.fullmatch(str(value)) is not None
    return not inside and str(value).startswith(_PLUGINS)


def _refused(path: str, key: str, value: object) -> UserError:
    return UserError(
        f"{path}.{key}={value}: a configuration may name no code to be run but this package's callbacks, and "
        "Hydra's launchers and sweepers"
    )
