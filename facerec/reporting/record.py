"""What a run has left in its folder, read back: settings, rows of metrics, results, starts and ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from facerec.bounded_yaml import require_bounded
from facerec.errors import DamagedDataError, UserError

Row = dict[str, Any]
NUMBERS: Final = ("accuracy", "accuracy_exact", "auc", "eer", "tar_at_far")  # of a set


@dataclass(frozen=True)
class RunRecord:
    """The records of a run, read when they are first asked for; what is missing is empty.

    Attributes:
        folder: the run's.
    """

    folder: Path

    @classmethod
    def of(cls, path: Path) -> RunRecord:
        """Find the run of a folder, or of a file in it (``checkpoints/best.pt``).

        Raises:
            UserError: there is no run.
        """
        for folder in (path, path.parent, path.parent.parent):
            if (folder / ".hydra" / "config.yaml").is_file():
                return cls(folder)
        raise UserError(f"{path}: is no run's folder; it must hold .hydra/config.yaml")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed settings, nested."""
        loaded = self._read("config.yaml", DictConfig)
        try:
            return plain(loaded, resolve=True)
        except OmegaConfBaseException:  # a variable of the environment that is not set here
            return plain(loaded)

    @property
    def as_written(self) -> dict[str, Any]:
        """The same with interpolations as they were written."""
        return plain(self._read("config.yaml", DictConfig))

    @cached_property
    def overrides(self) -> list[str]:
        """The settings that were given on the command line."""
        return [str(one) for one in self._read("overrides.yaml", ListConfig)]

    def _read(self, name: str, kind: type[DictConfig] | type[ListConfig]) -> Any:
        """A file of .hydra, empty where it is missing; `DamagedDataError` where it is something else."""
        path = self.folder / ".hydra" / name
        if not path.is_file():
            return OmegaConf.create("{}" if kind is DictConfig else "[]")
        try:
            require_bounded(path)
            loaded = OmegaConf.load(path)
        except (YAMLError, OSError, ValueError, RecursionError, OmegaConfBaseException) as error:
            raise _damaged(str(path), " ".join(str(error).split())[:200]) from error
        if not isinstance(loaded, kind):
            raise _damaged(str(path), f"holds no {'settings' if kind is DictConfig else 'list of settings'}")
        return loaded

    @cached_property
    def given(self) -> dict[str, str]:
        """The same by key, as they were typed."""
        pairs = (one.lstrip("+").partition("=") for one in self.overrides)
        return {key: value for key, _, value in pairs}

    @cached_property
    def rows(self) -> list[Row]:
        """All rows of metrics.jsonl."""
        return _rows(
            self.folder / "metrics.jsonl", lambda row: isinstance(row.get("step"), int) and _numeric(row)
        )

    @property
    def steps(self) -> list[Row]:
        """The rows of logged steps."""
        return [row for row in self.rows if not _of_evaluation(row)]

    @property
    def evaluations(self) -> list[Row]:
        """The rows of evaluations."""
        return [row for row in self.rows if _of_evaluation(row)]

    @cached_property
    def targets(self) -> dict[str, Mapping[str, Any]]:
        """The last evaluation's entries of results.json by target, of one model."""
        path = self.folder / "results.json"
        found = _json(path.read_bytes(), str(path)).get("targets", {}) if path.is_file() else {}
        if not (isinstance(found, dict) and all(isinstance(one, dict) for one in found.values())):
            raise _damaged(str(path), "its targets are no results")
        judged = {name: one for name, one in found.items() if "accuracy" in one}
        for name, one in judged.items():
            rates = one.get("tar_at_far") or {}
            if not (
                isinstance(rates, dict)
                and _numeric(rates)
                and _numeric({k: one.get(k) for k in NUMBERS[:-1]})
            ):
                raise _damaged(str(path), f"the numbers of {name} are none")
        return judged

    @cached_property
    def history(self) -> list[Row]:
        """The rows of history.jsonl."""
        return _rows(self.folder / "history.jsonl", _is_event)

    @property
    def starts(self) -> list[Row]:
        """Its rows of starts."""
        return [row for row in self.history if row["event"] == "start"]

    @property
    def seconds(self) -> float | None:
        """How long the run has taken in all its parts, until now where it is at work; None: not recorded.

        A last part that was killed lasted until its last row of metrics.
        """
        total = float(sum(row["seconds"] for row in self.history if row["event"] == "end"))
        metrics = self.folder / "metrics.jsonl"
        if self.history and self.history[-1]["event"] == "start" and metrics.is_file():
            total += max(0.0, metrics.stat().st_mtime - _seconds(self.history[-1]["time"]))
        return total if self.history else None

    @property
    def ended(self) -> str:
        """How it ended: ``finished``, ``signal 15``, ``failed``; empty where it has not, or was killed."""
        return str(self.history[-1].get("why", "")) if self.history else ""


def finished_before(config: DictConfig, folder: Path) -> float | None:
    """Return what judges the run in `folder`, by its `eval.select`, finished with these settings; else None.

    A run without evaluation counts as one that has not: it is quick to see that nothing is left of it.
    """
    record, path = RunRecord(folder), folder / ".hydra" / "config.yaml"
    if record.ended != "finished" or path.read_text(encoding="utf-8") != OmegaConf.to_yaml(config):
        return None
    return record.history[-1].get("score")


def _of_evaluation(row: Row) -> bool:
    return "mean/accuracy" in row


def _rows(path: Path, fits: Callable[[Row], bool]) -> list[Row]:
    """The complete rows of a file of JSON lines; `DamagedDataError` for the first that does not fit."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        if line:
            rows.append(_json(line, f"{path}, line {number}"))
            if not fits(rows[-1]):
                raise _damaged(f"{path}, line {number}", "is no such row as a run writes")
    return rows


def _json(text: bytes, where: str) -> Row:
    """An object; NaN and infinities, which JSON has not, become None."""
    try:
        value = json.loads(text, parse_constant=lambda name: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(where, "is no object of JSON")
    return value


def _finite(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def _numeric(row: Mapping[str, Any]) -> bool:
    return all(one is None or isinstance(one, int | float) for one in row.values())


def _is_event(row: Row) -> bool:
    """True for a row of a start or an end."""
    try:
        _seconds(row["time"])
        end: dict[str, Any] = {"seconds": (int, float), "why": str}
        kinds = {} if row["event"] == "start" else end
        kinds |= {"score": (int, float, type(None))} if "score" in row else {}
        return isinstance(row["step"], int) and all(isinstance(row[key], kind) for key, kind in kinds.items())
    except (KeyError, TypeError, ValueError):
        return False


def _damaged(where: str, reason: str) -> DamagedDataError:
    return DamagedDataError(f"{where}: {reason}; it was changed since the run: get it back, or remove it")


def plain(config: Any, **how: Any) -> dict[str, Any]:
    """Return a configuration as plain values; `how` as `OmegaConf.to_container` takes it."""
    values: Any = OmegaConf.to_container(config, **how)
    return {str(key): value for key, value in values.items()}


def _seconds(time: str) -> float:
    return datetime.strptime(time, "%Y-%m-%d %H:%M:%S%z").timestamp()
