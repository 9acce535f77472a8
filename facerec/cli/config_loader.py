"""Hydra's loader of configurations: plugins' folders, bounded YAML, a home folder, no foreign code, hints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from facerec import plugins
from facerec.bounded_yaml import require_bounded
from facerec.cli.foreign_code import entries, refuse_foreign_code
from facerec.cli.from_run import FromRun
from facerec.cli.mistakes import no_such_choice
from facerec.errors import UserError, nearest, require, synonyms

NO_ROOT = (
    "is of one data set; each of several has its own path ('data=[/data/a,/data/b]'), and eval.root is the "
    "folder of the targets"
)


class _Repository(ConfigRepository):
    """Reads configuration files whose aliases do not multiply without end."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """As Hydra, of bounded YAML."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            require_bounded(Path(source.path) / ConfigSource._normalize_file_name(config_path))
        return super().load_config(config_path)


class ConfigLoader(ConfigLoaderImpl):
    """Composes as Hydra does, and checks the outcome before anything is built from it.

    Not a check in the command, so that it goes along to the processes of a launcher.

    Attributes:
        repeated: the recorded run that is repeated, if one is.
        origin: of the settings, for errors.
    """

    repeated: FromRun | None = None
    origin: str = "the command line"

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        for folder in plugins.config_folders():
            before = SearchPathQuery(provider="schema")  # which must be the last
            config_search_path.prepend("facerec-plugin", f"file://{folder}", before)
        super().__init__(config_search_path)
        self.repository = _Repository(config_search_path)
        self.repeated = type(self).repeated  # of this object, so that it goes along

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return the choices of a group, without ``base``, from which others inherit."""
        if config_name is None and not overrides:  # no folders are added: Hydra need not copy what it holds
            names = self.repository.get_group_options(group_name, results_filter)
        else:
            names = super().get_group_options(group_name, results_filter, config_name, overrides)
        return [name for name in names if name != "base"]

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
        if self.repeated is not None:
            self.repeated.lay_over(config)
        self._compose_sources(config, config_name)
        _expand_home(config)
        refuse_foreign_code(config)
        _refuse_wrong_types(config)
        self._refuse_unknown_sections(config, config_name)
        return config

    def _compose_sources(self, config: DictConfig, config_name: str | None) -> None:
        """Replace each of `data.sources` by the settings that it names; the first gives root and targets.

        Raises:
            UserError: a source is neither the name of a data set nor a path; a `data.root` beside them.
        """
        node = OmegaConf.select(config, "data.sources")
        if not isinstance(node, ListConfig):
            return
        before = self.origin != type(self).origin or self.repeated is not None  # of a former stage, or run
        require(before or config.data.root is None, "data.root", config.data.root, NO_ROOT)
        from facerec.loading.settings import OF_A_SOURCE

        given: Any = OmegaConf.to_container(node, resolve=False)
        sources: list[Any] = []
        targets: list[str] = []
        for i, source in enumerate(given):
            if isinstance(source, str):
                source = self._named_source(source)
            if isinstance(source, dict):
                choice = str(source.get("data", "rec"))
                if choice == "mix" or choice not in self.get_group_options("data"):
                    problem = no_such_choice("data", choice) if choice != "mix" else "is a mixture itself"
                    raise UserError(f"data.sources[{i}]: {problem}")
                plus = "" if config_name else "+"  # there is no default to replace
                data = super().load_configuration(config_name, [f"{plus}data={choice}"], RunMode.RUN).data
                plain: Any = OmegaConf.to_container(data, resolve=False)
                own = {key: plain[key] for key in OF_A_SOURCE}
                source = own | {key: value for key, value in source.items() if key != "data"}
                targets = targets if sources else plain["targets"]
            sources.append(source)
        with open_dict(config):
            config.data.sources = sources
            config.data.targets = config.data.targets or targets
            first = sources[0] if sources and isinstance(sources[0], dict) else {}
            config.data.root = config.data.root or first.get("root")

    def _named_source(self, name: str) -> dict[str, str]:
        """Return the source that a name or path stands for."""
        path = Path(name).expanduser()
        if name in self.get_group_options("data") or not (path.exists() or "/" in name):
            return {"data": name}
        return {"data": "rec" if path.suffix == ".rec" or any(path.glob("*.rec")) else "folder", "root": name}

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
        """Name the nearest setting that exists with these choices of groups."""
        text = str(error)
        known_problems = "Could not override|Could not delete from config\\.|item is already at"
        found = re.search(f"({known_problems}) '([^']+)'", text)
        if found is None:
            return error
        problem, key = found.groups()
        if problem.startswith("item"):
            return UserError(f"+{key}: there is a {key} already; {key}=… without + sets it")
        try:
            config = super().load_configuration(config_name, choices, RunMode.RUN)
        except ConfigCompositionException:
            return error
        plain = OmegaConf.to_container(config, resolve=False)
        last = key.rpartition(".")[2]
        words = (last, *synonyms(last))
        places = [
            f"{path}.{name}".lstrip(".") for one in words for path, name, _ in entries(plain) if name == one
        ]
        elsewhere = [place for place in places if not _of_hydra(place)]
        elsewhere.sort(key=lambda place: place.startswith("teacher."))  # the rarest to be meant
        parts = key.split(".")
        while len(parts) > 1 and OmegaConf.select(config, ".".join(parts[:-1])) is None:
            parts.pop()
            elsewhere = []  # the section is what is wrong
        section, key = ".".join(parts[:-1]), ".".join(parts)
        there = OmegaConf.select(config, section) if section else config
        known = [".".join([*parts[:-1], str(name)]) for name in there if name != "hydra"]
        choice = config.hydra.runtime.choices.get(section)
        also = f", with {section}={choice}" if choice not in (None, "default") else ""
        hint = nearest(key, known, elsewhere)
        return UserError(f"{key}: no such setting (from {self.origin}{also}); {hint}")


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _refuse_wrong_types(config: DictConfig) -> None:
    """Raise `UserError` for a wrong type of what Hydra uses before any settings are checked."""
    given: Any = OmegaConf.to_container(config, resolve=False)
    output_dir, verbose = given.get("output_dir", "."), given["hydra"]["verbose"]
    if not (isinstance(output_dir, str) and output_dir):
        raise UserError(f"output_dir={output_dir}: must be the path of a folder")
    if not isinstance(verbose, bool | str | list):
        raise UserError(f"hydra.verbose={verbose}: must be true, false, or names of loggers")


def _expand_home(config: DictConfig) -> None:
    """Put the home folder where a value begins with ``~``; of interpolations, in those of the environment."""
    for path, key, raw in list(entries(OmegaConf.to_container(config, resolve=False))):
        if isinstance(raw, str) and raw.startswith(("~", "${oc.env:")) and path != "hydra.overrides.task":
            node = OmegaConf.select(config, path) if path else config
            at: Any = key if isinstance(node, DictConfig) else int(key)
            value = str(node[at])
            if value.startswith("~"):
                node[at] = os.path.expanduser(value)  # noqa: PTH111 - Path raises where there is no such user
