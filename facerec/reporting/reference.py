"""A reference curve beside a run: an earlier run's, or a published one, and what is clearly off of it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facerec.errors import ConfigError, UserError, nearest, setting_text
from facerec.files import write_bytes
from facerec.reporting.record import Row, RunRecord
from facerec.settings import AtResume, flat, marks
from facerec.training.reporter import Reporter, Results, Run
from facerec.training.settings import TrainerSettings

log = logging.getLogger(__name__)

NAME = "reference.json"
DEVIATIONS = 4  # beyond the range of the curve that count as clearly off; by chance once in 15,000
_NAMED = 6  # differing settings in a line
_FEW = 5  # points of a curve, below which they do not tell how it scatters
_NEAR = 0.025  # part of a step's number by which a curve's ends may be passed
_OWN = ("output_dir", "logger", "plugins", "eval", "hydra")  # sections that say nothing of what is learnt
_CAUSES = {  # by: accuracies are off, the loss is
    (True, True): (
        "the learning rate for so many images a step, labels shuffled or of another pack, BGR for RGB, "
        "input.mean and input.std, weight decay, mirroring missing, warm-up"
    ),
    (True, False): (
        "the loss agrees, so the evaluation differs: alignment or crop of the set, BGR for RGB, "
        "input.mean and input.std, or a test set of another version"
    ),
    (False, True): (
        "the accuracy agrees, so the loss is another one: head.s, head.m, head.sample_rate, the number of "
        "identities, label noise"
    ),
}


@dataclass(frozen=True)
class Reference:
    """A curve to compare with.

    Attributes:
        name: as it was given.
        source: where it comes from.
        rows: its points, each with ``step``, and ``loss`` or ``lfw/accuracy`` and the like.
        images_per_step: of all its processes; None where not known.
        settings: by dotted names, those that are known.
        scatter: deviation of an accuracy between evaluations; None: as the curve tells.
    """

    name: str
    source: str
    rows: list[Row]
    images_per_step: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    scatter: float | None = None

    def at_steps_of(self, images_per_step: int) -> Reference:
        """Return the curve over the steps of a run with so many images per step."""
        factor = (self.images_per_step or images_per_step) / images_per_step
        rows = [row | {"step": row["step"] * factor} for row in self.rows]
        return replace(self, rows=rows, images_per_step=images_per_step)

    def curve(self, key: str) -> np.ndarray:
        """Return steps and values of a number, (2, N)."""
        known = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]
        return np.asarray(known, np.float64).reshape(-1, 2).T

    def sets(self) -> list[str]:
        """Return the names of the sets it knows."""
        keys = dict.fromkeys(key for row in self.rows for key in row if key.endswith("/accuracy"))
        return [name for key in keys if (name := key.removesuffix("/accuracy")) != "mean"]

    def expected(self, key: str, begin: float, end: float) -> tuple[float, float] | None:
        """Return least and largest value between two steps and at the points around; None: not known."""
        step_N, value_N = self.curve(key)
        if not len(step_N) or end < step_N[0] * (1 - _NEAR) or end > step_N[-1] * (1 + _NEAR):
            return None
        first = max(0, int(np.searchsorted(step_N, begin, "right")) - 1)
        last = min(len(step_N) - 1, int(np.searchsorted(step_N, end, "left")))
        part_N = value_N[min(first, last) : last + 1]
        return float(part_N.min()), float(part_N.max())

    def deviation(self, key: str) -> float:
        """Return by how much its points scatter about the lines through their neighbours."""
        step_N, value_N = self.curve(key)
        if len(step_N) < _FEW:
            return (self.scatter or 0.0) if key != "loss" else 0.05 * float(np.mean(value_N))
        weight_N = (step_N[1:-1] - step_N[:-2]) / (step_N[2:] - step_N[:-2])
        line_N = (1 - weight_N) * value_N[:-2] + weight_N * value_N[2:]
        # The median ignores a steep start; of a point and the mean of two, the variances add up to 1.5.
        return float(1.4826 * np.median(np.abs(value_N[1:-1] - line_N)) / math.sqrt(1.5))


def open_reference(name: str, folders: Sequence[Path]) -> Reference:
    """Return a published curve of ``references.yaml`` in one of the `folders`, or that of a run's folder.

    Raises:
        ConfigError: there is neither.
        UserError: the folder is no run's, or has no rows of metrics, or damaged ones.
    """
    published = _published(folders)
    if name in published:
        return published[name]
    path = Path(name).expanduser()
    if not path.exists():
        hint = f"is no published curve and no run's folder; {nearest(name, published)}"
        raise ConfigError("trainer.reference", name, hint)
    record = RunRecord.of(path)
    if not record.rows:
        raise UserError(f"trainer.reference={name}: that run has no rows in metrics.jsonl (logger=metrics)")
    given = flat(record.config)
    factors: list[Any] = [record.starts[-1].get("processes") if record.starts else 1]
    factors += [given.get("trainer.batch_size"), given.get("trainer.accumulate", 1)]
    per_step = math.prod(factors) if all(isinstance(one, int) for one in factors) else None
    compared = [[key for key in row if key == "loss" or key.endswith("/accuracy")] for row in record.rows]
    rows = [{k: row[k] for k in ("step", *keys)} for row, keys in zip(record.rows, compared, strict=True)]
    return Reference(name, f"the run in {record.folder}", rows, per_step or None, given)


def _published(folders: Sequence[Path]) -> dict[str, Reference]:
    import yaml  # type: ignore[import-untyped]

    found = {}
    for path in (folder / "references.yaml" for folder in folders):
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, entry in entries.items():
            keys = [one if one == "loss" else f"{one}/accuracy" for one in entry["columns"]]
            curve: dict[int, list[float]] = entry["curve"]
            rows = [{"step": at, **dict(zip(keys, values, strict=True))} for at, values in curve.items()]
            rest = {key: entry.get(key) for key in ("images_per_step", "scatter")}
            found[name] = Reference(name, entry["source"], rows, settings=entry["settings"], **rest)
    return found


def reference_beside(folder: Path, config: Mapping[str, Any]) -> Reference | None:
    """Return the reference that a run has been laid over, as its folder keeps it; None: none."""
    path = folder / NAME
    if not (config.get("trainer") or {}).get("reference") or not path.is_file():
        return None
    return Reference(**json.loads(path.read_text(encoding="utf-8")))


class _Judged(NamedTuple):
    key: str
    off: bool
    text: str


class Compared(Reporter):
    """Says after each evaluation, in one line, whether the run is where the reference was.

    Clearly off is a number beyond the values of the curve around this step by more than `DEVIATIONS` times
    √(2·(a(1 − a)/pairs + scatter²)) for an accuracy a, √2 times the scatter for the loss, whose mean over the
    last quarter of the run is compared. Numbers of images are compared with numbers of images where a step
    has more of them in one.

    Args:
        folder: the run's, which keeps the curve for the report.
    """

    def __init__(self, reference: Reference, folder: Path) -> None:
        self.reference, self.path = reference, folder / NAME

    def started(self, run: Run) -> None:
        settings, loader = run.settings, run.loader
        per_step = loader.batch_size * loader.world_size * settings.accumulate
        there = self.reference.images_per_step
        self._losses: list[tuple[int, float]] = []
        self._said = False
        self._batch = "" if there in (per_step, None) else f"{per_step:,} images a step (there {there:,})"
        self.reference = self.reference.at_steps_of(per_step)
        write_bytes(self.path, json.dumps(asdict(self.reference), ensure_ascii=False).encode())
        anew = f"; {self._batch}: compared at equal numbers of images" if self._batch else ""
        log.info("%-10s %s: %s%s", "reference", self.reference.name, self.reference.source, anew)

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        if row.get("loss") is not None:
            self._losses.append((row["step"], row["loss"]))

    def evaluated(self, run: Run, results: Results) -> None:
        step = run.position.step
        if not step:
            return
        if not self._said:
            self._say_sets(list(results))
        numbers = {f"{name}/accuracy": (one.accuracy, one.pairs) for name, one in results.items()}
        found = [self._judge(key, value, step, step, pairs) for key, (value, pairs) in numbers.items()]
        recent = [loss for at, loss in self._losses if at > 0.75 * step]
        if recent:
            found.append(self._judge("loss", sum(recent) / len(recent), 0.75 * step, step))
        known = [one for one in found if one is not None]
        off = [one for one in known if one.off]
        said = "; ".join(one.text for one in off or known) or "the curve has nothing at this step"
        where = f"{self.reference.name} at step {step:,}"
        if not off:
            within = f": within {DEVIATIONS} deviations" if known else ""
            log.info("%-10s %s: %s%s", "reference", where, said, within)
            return
        of_loss = {one.key == "loss" for one in off}
        both = len({one.key == "loss" for one in known}) == 2  # else nothing tells them apart
        causes = _CAUSES[False in of_loss, True in of_loss] if both else _CAUSES[True, True]
        differences = self._differences(run.config)
        differs = f"; this run has {', '.join(differences[:_NAMED])}" if differences else ""
        more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        end = f"Usual causes: {causes}{differs}{more}"
        log.warning("%-10s %s: clearly off: %s. %s", "reference", where, said, end)

    def finished(self, run: Run) -> None:
        if not self._said:  # a run without evaluations: its loss, once
            self.evaluated(run, {})

    def _judge(
        self, key: str, value: float, begin: float, end: float, pairs: int | None = None
    ) -> _Judged | None:
        """Compare a number with the curve between two steps; None: the curve does not say."""
        expected = self.reference.expected(key, begin, end)
        if expected is None:
            return None
        low, high = expected
        middle = (low + high) / 2
        variance = self.reference.deviation(key) ** 2 + (middle * (1 - middle) / pairs if pairs else 0.0)
        room = DEVIATIONS * math.sqrt(2 * variance)
        off = value < low - room or value > high + room
        digits = ".4g" if key == "loss" else ".5f"
        there = f"{low:{digits}}" if high - low < 1e-9 else f"{low:{digits}} to {high:{digits}}"
        limits = f" ± {room:{'.2g' if key == 'loss' else '.5f'}}" if off else ""
        return _Judged(key, off, f"{key.removesuffix('/accuracy')} {value:{digits}} (there {there}{limits})")

    def _say_sets(self, names: list[str]) -> None:
        self._said = True
        known = self.reference.sets()
        missing = [name for name in names if name not in known]
        if missing:
            rest = ", ".join(name for name in names if name in known) or "the loss alone, if it has one"
            log.warning(
                "%-10s %s: has no accuracy on %s (it has %s); compared: %s",
                *("reference", self.reference.name, ", ".join(missing), ", ".join(known) or "none", rest),
            )

    def _differences(self, config: Mapping[str, Any]) -> list[str]:
        """Return the settings in which the run differs from the reference, as far as they are known."""
        here, there = flat(config), self.reference.settings
        free = {f"trainer.{name}" for name, mark in marks(TrainerSettings).items() if mark is AtResume.FREE}
        found = [self._batch] if self._batch else []
        for key, value in there.items():
            own = key.partition(".")[0] in _OWN or key in free
            if not own and key in here and here[key] != value:
                found.append(f"{key}={setting_text(here[key])} (there {setting_text(value)})")
        return found
