"""`facerec-train --from RUN`: the settings of a recorded run, under those that are given anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from facerec.errors import UserError
from facerec.reporting.record import RunRecord, plain
from facerec.settings import flat

_NOT_REPEATED = ("output_dir", "plugins")  # of a new run; code, which the command line alone may name


@dataclass(frozen=True)
class FromRun:
    """A recorded run to be repeated.

    Attributes:
        folder: the run's.
        anew: keys and groups that the command line gives, which count more than the record.
        config: its composed settings, with interpolations as they were written.
    """

    folder: Path
    anew: frozenset[str]
    config: dict[str, Any] = field(repr=False)

    def lay_over(self, config: DictConfig) -> None:
        """Set what the record says otherwise than the files of configuration do by now.

        Raises:
            UserError: a recorded setting does not exist any more.
        """
        if "experiment" in self.anew:  # which may set anything
            return
        now = flat({key: value for key, value in plain(config).items() if key != "hydra"})
        for key, value in flat(self.config).items():
            anew = any(key == one or key.startswith(f"{one}.") for one in self.anew)
            if anew or (key in now and now[key] == value):
                continue
            if key not in now:
                hint = f"{self.folder} has it, but it exists no more; ~{key} leaves it out"
                raise UserError(f"{key}={value}: {hint}")
            with open_dict(config):
                OmegaConf.update(config, key, value, merge=False)


def from_run(arguments: Sequence[str]) -> tuple[list[str], FromRun | None]:
    """Take ``--from RUN`` out of a command line, and put the recorded settings before those that are left.

    Raises:
        UserError: RUN is missing or holds no record, or was made with plugins that are not named anew.
    """
    given, path = [], None
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option == "--from":
            path = value if equals else next(rest, None)
            if not path:
                raise UserError("--from: needs the folder of a run: --from runs/x")
        else:
            given.append(argument)
    if path is None:
        return given, None
    record = RunRecord.of(Path(path).expanduser())
    anew = frozenset(_key(one) for one in given if not one.startswith("-"))
    config = record.as_written
    plugins = config.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if plugins and "plugins" not in anew:
        names = ",".join(map(str, plugins))
        raise UserError(f"--from {path}: was made with plugins, which run code; give them: plugins=[{names}]")
    kept = {key: value for key, value in config.items() if key not in (*_NOT_REPEATED, "hydra")}
    for one in record.overrides:
        if one.startswith("-") or _key(one).startswith("hydra"):
            raise UserError(f"--from {path}: its record gives {one}, which is no setting of a run")
    anew_or_new = {*_NOT_REPEATED, *anew}  # a key, or the group that it is of
    left = [one for one in record.overrides if not {_key(one), _key(one).partition(".")[0]} & anew_or_new]
    return [*left, *given], FromRun(record.folder, anew, kept)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
