"""Runs side by side: the settings in which they differ, their numbers, seeds folded into mean ± deviation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from facerec.errors import ConfigError, UserError, duration, setting_text
from facerec.reporting.record import NUMBERS, RunRecord
from facerec.settings import flat

_LOWER: Final = frozenset(("eer",))  # is better
_APART: Final = ("output_dir", "logger", "plugins", "trainer.resume")  # no settings to compare runs by


@dataclass(frozen=True)
class Fold:
    """Runs whose settings are the same but for the seed, and for others that follow it.

    Attributes:
        names: of the runs.
        settings: those in which the compared runs differ, as text; of several seeds, how many.
        values: of each number (a key of `Runs.columns`) the runs that have it, by number.
    """

    names: list[str]
    settings: dict[str, str]
    values: dict[str, list[float]]
    records: list[RunRecord]

    def mean(self, column: str) -> float | None:
        """The mean over the seeds; None where a run lacks the number."""
        values = self.values.get(column, [])
        return float(np.mean(values)) if len(values) == len(self.names) else None

    def interval(self, column: str) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds, by Student's t, within the 0 … 1 of all these numbers.

        None for fewer than two seeds.
        """
        values = self.values.get(column, [])
        if self.mean(column) is None or len(values) < 2:
            return None
        from scipy.stats import t as student_t  # slow to load

        half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        return max(0.0, float(np.mean(values) - half)), min(1.0, float(np.mean(values) + half))

    def text(self, column: str) -> str:
        """``0.98867``, of several seeds ``0.98867 ± 0.00386`` (their sample deviation), or a dash."""
        if (mean := self.mean(column)) is None:
            return "–"
        values = self.values[column]
        return f"{mean:.5f}" + (f" ± {np.std(values, ddof=1):.5f}" if len(values) > 1 else "")

    @property
    def seconds(self) -> float | None:
        """Time of all its runs; None where one has not recorded it."""
        known = [record.seconds for record in self.records]
        return None if None in known else float(sum(filter(None, known)))

    @property
    def device_hours(self) -> float | None:
        """The same times the processes of each run, in hours."""
        if self.seconds is None:
            return None
        parts = [(r.seconds or 0.0) * (r.starts[-1]["processes"] if r.starts else 1) for r in self.records]
        return sum(parts) / 3600

    @property
    def time(self) -> str:
        """The time as text, or a dash."""
        return duration(self.seconds)

    @property
    def cost(self) -> str:
        """The device-hours as text, or a dash."""
        return "–" if self.device_hours is None else f"{self.device_hours:.3g}"

    @property
    def state(self) -> str:
        """``finished``, or how those runs ended that have not, and where the numbers were not kept."""
        return ", ".join(dict.fromkeys(map(_state, self.records)))


@dataclass(frozen=True)
class Runs:
    """Records of several runs, compared.

    Args:
        records: by the name of the run.
        by: the number to judge by, one of `NUMBERS`; None: the one that suits all their sets.
    """

    records: Mapping[str, RunRecord]
    by: str | None = None

    @cached_property
    def judged_by(self) -> str:
        """The number that runs are ordered by, as their mean over the sets."""
        if self.by is not None:
            if self.by not in NUMBERS:
                raise ConfigError("--by", self.by, f"must be one of {', '.join(NUMBERS)}")
            if self.by == "tar_at_far" and self.far is None:
                raise ConfigError("--by", self.by, "there is no FAR that all sets of these runs support")
            return self.by
        used = {one.get("judged_by") for record in self.records.values() for one in record.targets.values()}
        return next((key for key in ("auc", "accuracy_exact") if key in used), "accuracy")

    @property
    def lower_is_better(self) -> bool:
        """True where less of the number is better."""
        return self.judged_by in _LOWER

    @cached_property
    def targets(self) -> list[str]:
        """All sets that a run was evaluated on."""
        return list(dict.fromkeys(name for record in self.records.values() for name in record.targets))

    @cached_property
    def far(self) -> str | None:
        """The smallest FAR that all sets of all runs support."""
        rates = [
            {far for far, tar in (one.get("tar_at_far") or {}).items() if tar is not None}
            for record in self.records.values()
            for one in record.targets.values()
        ]
        common = set.intersection(*rates) if rates else set()
        return min(common, key=float, default=None)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Keys and titles of the numbers: the judged one of each set, where there are several, then means."""
        titles = {"accuracy": "accuracy", "accuracy_exact": "exact accuracy", "auc": "AUC", "eer": "EER"}
        titles["tar_at_far"] = f"TAR @ FAR {self.far}"
        shown = [key for key in NUMBERS if key != "tar_at_far" or self.far is not None]
        of_sets = {f"{name}/{self.judged_by}": name for name in self.targets} if len(self.targets) > 1 else {}
        return of_sets | {f"mean/{key}": titles[key] for key in shown}

    @property
    def column(self) -> str:
        """The key of the number that runs are ordered by."""
        return f"mean/{self.judged_by}"

    def numbers(self, record: RunRecord) -> dict[str, float]:
        """The numbers of a run; a mean only where it has the number on every set that any run has."""
        numbers: dict[str, float] = {}
        for name, entry in record.targets.items():
            entry = dict(entry) | {"tar_at_far": (entry.get("tar_at_far") or {}).get(self.far)}
            numbers |= {f"{name}/{key}": entry[key] for key in NUMBERS if entry.get(key) is not None}
        for key in NUMBERS:
            values = [numbers[f"{name}/{key}"] for name in self.targets if f"{name}/{key}" in numbers]
            if self.targets and len(values) == len(self.targets):
                numbers[f"mean/{key}"] = sum(values) / len(values)
        return numbers

    @cached_property
    def varied(self) -> dict[str, Callable[[RunRecord], str]]:
        """The settings in which runs differ, with what tells their value: first those given on a command
        line, then others whose group is not among them and that do not merely follow one before them.
        """
        given = dict.fromkeys(key for record in self.records.values() for key in record.given)
        found: dict[str, Callable[[RunRecord], str]] = {}
        seen: set[tuple[str, ...]] = set()
        others = dict.fromkeys(key for record in self.records.values() for key in flat(record.config))
        for key in [*given, *others]:
            explained = key in others and key not in given and key.partition(".")[0] in found
            if key in found or explained or _apart(key):
                continue

            value = partial(_value, key=key)
            values = tuple(map(value, self.records.values()))
            if len(set(values)) > 1 and (key in given or values not in seen):
                found[key] = value
                seen.add(values)
        return found

    @cached_property
    def folds(self) -> list[Fold]:
        """The runs with seeds folded, the best first; those without the number stand at the end."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, record in self.records.items():
            config = {key: str(value) for key, value in flat(record.config).items() if not _apart(key)}
            config = config or dict(record.given)  # an older run's
            config.pop("seed", None)
            for follows in [key for key, one in flat(record.as_written).items() if one == "${seed}"]:
                config.pop(follows, None)
            key = tuple(sorted(config.items())) if record.targets else (name,)  # one that failed stands alone
            groups.setdefault(key, []).append(name)
        folds = [self._fold(names) for names in groups.values()]
        sign = 1 if self.lower_is_better else -1
        return sorted(folds, key=lambda one: math.inf if (x := one.mean(self.column)) is None else sign * x)

    def _fold(self, names: list[str]) -> Fold:
        records = [self.records[name] for name in names]
        settings = {}
        for key, value in self.varied.items():
            settings[key] = ",".join(dict.fromkeys(map(value, records)))
        measured = [self.numbers(record) for record in records]
        keys = dict.fromkeys(key for one in measured for key in one)
        values_of = {key: [one[key] for one in measured if key in one] for key in keys}
        return Fold(names, settings, values_of, records)

    @property
    def best(self) -> Fold | None:
        """The first of several that has the number."""
        complete = [one for one in self.folds if one.mean(self.column) is not None]
        return complete[0] if len(complete) > 1 else None

    @property
    def failed(self) -> Iterator[str]:
        """Names of the runs without results."""
        return (name for name, record in self.records.items() if not record.targets)


def find_runs(folders: Sequence[Path]) -> dict[str, RunRecord]:
    """Find the training runs in folders, at any depth, by short names that tell them apart.

    Raises:
        UserError: a folder is not there, or holds no run.
    """
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; name runs, or a folder that holds some")
        here = [path.parent for path in folder.rglob(".hydra") if (path / "overrides.yaml").is_file()]
        records = {path.resolve(): RunRecord(path) for path in sorted(here, key=_natural)}
        records = {path: one for path, one in records.items() if "ckpt" not in one.config}  # an evaluation
        if not records:
            raise UserError(f"{folder}: holds no run of facerec-train (a folder with .hydra/overrides.yaml)")
        found |= records
    root = Path(os.path.commonpath([path.parent for path in found]))
    return {str(path.relative_to(root)): record for path, record in found.items()}


def _state(record: RunRecord) -> str:
    if record.evaluations and not record.targets:
        return f"{record.ended or 'not ended'}, without results.json (logger=results)"
    return record.ended or ("finished" if record.targets else "no results")


def _natural(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple((len(part), part) for part in path.parts)


def _apart(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _APART)


def _value(record: RunRecord, key: str) -> str:
    """A setting as text: out of the configuration, of a group its choice, else as it was given."""
    node: Any = record.config
    for part in key.lstrip("~").split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping):
        return record.given.get(key) or str(node.get("name", "–"))
    if node is None:
        return record.given.get(key, "–")
    typed = record.given.get(key) if isinstance(node, list) else None  # [a,b], of sources with all settings
    return typed or setting_text(node)
