"""What a run has left in its folder, read back: settings, rows of metrics, results, starts and ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facerec.errors import UserError

Row = dict[str, Any]


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
        path = self.folder / ".hydra" / "config.yaml"
        if not path.is_file():
            return {}
        loaded = OmegaConf.load(path)
        try:
            plain = OmegaConf.to_container(loaded, resolve=True)
        except OmegaConfBaseException:  # a variable of the environment that is not set here
            plain = OmegaConf.to_container(loaded)
        return plain if isinstance(plain, dict) else {}  # type: ignore[return-value]

    @cached_property
    def overrides(self) -> list[str]:
        """The settings that were given on the command line."""
        path = self.folder / ".hydra" / "overrides.yaml"
        return [str(one) for one in OmegaConf.load(path)] if path.is_file() else []

    @cached_property
    def given(self) -> dict[str, str]:
        """The same by key, as they were typed."""
        pairs = (one.lstrip("+").partition("=") for one in self.overrides)
        return {key: value for key, _, value in pairs}

    @cached_property
    def rows(self) -> list[Row]:
        """All rows of metrics.jsonl."""
        return _rows(self.folder / "metrics.jsonl")

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
        found = json.loads(path.read_text(encoding="utf-8")).get("targets", {}) if path.is_file() else {}
        return {name: one for name, one in found.items() if "accuracy" in one}

    @cached_property
    def history(self) -> list[Row]:
        """The rows of history.jsonl."""
        return _rows(self.folder / "history.jsonl")

    @property
    def starts(self) -> list[Row]:
        """Its rows of starts."""
        return [row for row in self.history if row["event"] == "start"]

    @property
    def seconds(self) -> float | None:
        """How long the run has taken in all its parts, until now where it is at work; None: not recorded.

        A part that was killed lasted until its last row of metrics.
        """
        total, began = 0.0, None
        metrics = self.folder / "metrics.jsonl"
        for row in [*self.history, None]:
            if row is not None and row["event"] == "end":
                total, began = total + row["seconds"], None
                continue
            if began is not None and row is None and metrics.is_file():
                total += max(0.0, metrics.stat().st_mtime - began)
            began = None if row is None else _seconds(row["time"])
        return total if self.history else None

    @property
    def ended(self) -> str:
        """How it ended: ``finished``, ``signal 15``, ``failed``; empty where it has not, or was killed."""
        return str(self.history[-1].get("why", "")) if self.history else ""


def finished_before(config: DictConfig, folder: Path) -> float | None:
    """Return the mean over sets of what judges the run in `folder`, finished with these settings; else None.

    A run without evaluation counts as one that has not: it is quick to see that nothing is left of it.
    """
    record, path = RunRecord(folder), folder / ".hydra" / "config.yaml"
    if record.ended != "finished" or path.read_text(encoding="utf-8") != OmegaConf.to_yaml(config):
        return None
    numbers = [one[one.get("judged_by", "accuracy")] for one in record.targets.values()]
    return sum(numbers) / len(numbers) if numbers else None


def _of_evaluation(row: Row) -> bool:
    return "mean/accuracy" in row


def _rows(path: Path) -> list[Row]:
    """The complete rows of a file of JSON lines."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines if line]


def _seconds(time: str) -> float:
    return datetime.strptime(time, "%Y-%m-%d %H:%M:%S%z").timestamp()
