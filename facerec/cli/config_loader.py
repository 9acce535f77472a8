"""Hydra's loader of configurations, held to what a configuration may do: no code of others is run from it."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from facerec.errors import UserError, nearest

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


_ENTRIES = 100_000  # of one file, its aliases written out; ours have less than a hundred


class _Repository(ConfigRepository):
    """Where configuration files are, read only where their aliases do not multiply without end."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """As Hydra; raises `UserError` for a file of more than `_ENTRIES` entries."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            path = Path(source.path) / ConfigSource._normalize_file_name(config_path)
            content = path.read_bytes()
            entries = _written_out(content) if b"*" in content else 0
            if entries > _ENTRIES:
                raise UserError(
                    f"the configuration cannot be read: {path}: stands for {entries:.2g} entries, its "
                    f"aliases (*name) repeating each other; at most {_ENTRIES:,}: write out what is meant"
                )
        return super().load_config(config_path)


class ConfigLoader(ConfigLoaderImpl):
    """Composes as Hydra does, and judges the outcome before anything is built from it.

    A class of its own, and not a check in the command, so that it goes along to the processes of a launcher.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = _Repository(config_search_path)

    def get_group_options(self, group_name: str, *rest: Any, **named: Any) -> list[str]:
        """The choices of a group, without those that are only what others begin with."""
        return [name for name in super().get_group_options(group_name, *rest, **named) if name != "base"]

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *rest: Any, **named: Any
    ) -> DictConfig:
        """Compose a configuration; ``~`` at the start of a value is the home folder, as in a shell.

        The configuration that all runs of a sweep start from need not know every setting: a run may choose
        the head that has it. Hydra composes each run before the first begins, where a wrong one is refused.

        Raises:
            UserError: a setting that does not exist, or one that names code to be run.
        """
        load = super().load_configuration
        try:
            config = load(config_name, overrides, run_mode, *rest, **named)
        except ValueError as error:  # Hydra's own: a group that is to be no name, but nothing or a number
            raise self._no_choice(overrides) or error from error
        except KeyError as error:
            raise UserError(f"hydra.job.env_copy: {error.args[0]} is not set in the environment") from error
        except ConfigCompositionException as error:
            general = [one for one in overrides if "." not in one.partition("=")[0] or _of_hydra(one)]
            if run_mode != RunMode.MULTIRUN:
                choices = [one for one in overrides if self._is_choice(one)]
                raise self._explained(error, config_name, choices) from error
            config = load(config_name, general, run_mode, *rest, **named)
            config.hydra.overrides.task = [one for one in overrides if not _of_hydra(one)]
        _expand_home(config)
        _refuse_foreign_code(config)
        _refuse_other_kinds(config)
        self._refuse_unknown_sections(config, config_name)
        return config

    def _refuse_unknown_sections(self, config: DictConfig, config_name: str | None) -> None:
        """Raise `UserError` for a key beside the sections (``+wandb=true``), unless others refer to it."""
        primary = self.repository.load_config(config_name) if config_name else None
        if primary is None:
            return
        groups = [str(one.group) for one in primary.defaults_list or [] if isinstance(one, GroupDefault)]
        known = {"hydra", *map(str, primary.config), *(group for group in groups if "/" not in group)}
        for key in sorted(set(map(str, config)) - known):
            if f"${{{key}" not in OmegaConf.to_yaml(config):
                value = OmegaConf.to_container(config, resolve=False)[key]  # type: ignore[index, call-overload]
                raise UserError(f"{key}={value}: no such setting; {nearest(key, known - {'hydra'})}")

    def _is_choice(self, override: str) -> bool:
        """True for an override that chooses of a group of ours: ``head=cosface``."""
        key = override.lstrip("+~").partition("=")[0]
        return not _of_hydra(override) and bool(self.repository.group_exists(key))

    def _no_choice(self, overrides: list[str]) -> UserError | None:
        for key, _, value in (one.partition("=") for one in overrides):
            if self._is_choice(key) and (value == "null" or value.isdigit()):
                known = ", ".join(self.get_group_options(key))
                return UserError(f"{key}={value}: must be the name of a choice; known: {known}")
        return None

    def _explained(
        self, error: ConfigCompositionException, config_name: str | None, choices: list[str]
    ) -> Exception:
        """What is wrong, with the nearest setting that there is where these groups are chosen."""
        text = str(error)
        found = re.search(
            r"(Could not override|Could not delete from config\.|item is already at) '([^']+)'", text
        )
        if found is None:
            return error
        problem, key = found.groups()
        if problem.startswith("item"):
            return UserError(f"+{key}: there is a {key} already; {key}=… without + sets it")
        try:
            config = super().load_configuration(config_name, choices, RunMode.RUN)
        except ConfigCompositionException:
            return error
        parts = key.split(".")
        while len(parts) > 1 and OmegaConf.select(config, ".".join(parts[:-1])) is None:
            parts.pop()
        section, key = ".".join(parts[:-1]), ".".join(parts)
        there = OmegaConf.select(config, section) if section else config
        known = [".".join([*parts[:-1], str(name)]) for name in there if name != "hydra"]
        choice = config.hydra.runtime.choices.get(section)
        also = f", with {section}={choice}" if choice not in (None, "default") else ""
        return UserError(f"{key}: no such setting (from the command line{also}); {nearest(key, known)}")


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _written_out(content: bytes) -> int:
    """How many entries a YAML file stands for once each alias is what it names; no time goes into them."""
    sizes: dict[str, int] = {}  # by anchor
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchor and entries of what is not closed yet
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        open_[-1] = open_[-1][0], open_[-1][1] + size
    return open_[0][1]


def _refuse_other_kinds(config: DictConfig) -> None:
    """Raise `UserError` for what Hydra uses before any settings are checked, where it is of another kind."""
    given: Any = OmegaConf.to_container(config, resolve=False)
    output_dir, verbose = given.get("output_dir", "."), given["hydra"]["verbose"]
    if not (isinstance(output_dir, str) and output_dir):
        raise UserError(f"output_dir={output_dir}: must be the path of a folder")
    if not isinstance(verbose, bool | str | list):
        raise UserError(f"hydra.verbose={verbose}: must be true, false, or names of loggers")


def _expand_home(config: DictConfig) -> None:
    """Put the home folder where a value begins with ``~``; of interpolations, in those of the environment."""
    for path, key, raw in list(_entries(OmegaConf.to_container(config, resolve=False))):
        if isinstance(raw, str) and raw.startswith(("~", "${oc.env:")) and path != "hydra.overrides.task":
            node = OmegaConf.select(config, path) if path else config
            at: Any = key if isinstance(node, DictConfig) else int(key)
            value = str(node[at])
            if value.startswith("~"):
                node[at] = os.path.expanduser(value)  # noqa: PTH111 - Path raises where there is no such user


def _refuse_foreign_code(config: DictConfig) -> None:
    """Raise `UserError` where the configuration names code that Hydra, or logging, would run.

    Hydra before 1.3.6 runs whatever ``_target_`` names, ``os.system`` too; later ones all but what their own
    list of dangers has.
    """
    for path, key, value in _entries(OmegaConf.to_container(config, resolve=False)):
        if key == "_target_" and not path.startswith("hydra."):
            raise _refused(path, key, value)
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
        for path, key, value in _entries(resolved, start):
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


def _entries(node: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Path, key and value of every entry of plain containers, at any depth."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield path, str(key), value
        yield from _entries(value, f"{path}.{key}" if path else str(key))
