"""Comparison of a resumed run with its checkpoint: some settings may change, identities and images not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facerec import distributed
from facerec.errors import CheckpointError, ConfigError, counted, setting_text
from facerec.evaluation.settings import EvalSettings
from facerec.heads import HEADS
from facerec.images.images import LabelledImages
from facerec.registry import Registry, defaults
from facerec.settings import AtResume, flat, marks
from facerec.training.optimizers import OPTIMIZERS
from facerec.training.schedules import SCHEDULES
from facerec.training.settings import SETTINGS, TrainerSettings

log = logging.getLogger(__name__)

# Their fields say what may differ, their defaults what an older run had.
_SETTINGS = SETTINGS | {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "head": HEADS}
_SECTIONS = {  # all of whose settings may differ
    "plugins": AtResume.FREE,
    "output_dir": AtResume.FREE,
    "logger": AtResume.FREE,
    "schedule": AtResume.APPLIED,
}
_GONE = ("head.weight_dtype",)  # settings of earlier versions; what they left in bf16 is loaded as fp32


def changes(
    path: Path,
    state: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    faces: LabelledImages,
    began: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Compare a run with the state in a checkpoint; returns ``0.01 (was 0.1)`` by the name of each setting.

    In a stage, `config` are its settings and `began` those that the run began with; what is fixed must be
    as it was in both. Stages that have begun must, too; those to come may be others.

    Raises:
        CheckpointError: a setting that may not change has, or the data have; it names the first.
    """
    stage = state.get("stage", 0)
    found = _changed_settings(path, state["config"], config, stage)
    if "began" in state and began is not None:
        _changed_settings(path, state["began"], began, stage)
    _refuse_other_data(path, state, faces)
    before, now = len(state["random"].get("cpu", ())), distributed.world_size()
    if before != now:
        found["world size"] = f"{now} (was {before})"
    return found


def log_changes(path: Path, found: Mapping[str, str], finished_at: int | None) -> None:
    """Log the changes, a line each; `finished_at` is the last step where none is left to train.

    Raises:
        CheckpointError: there are changes, and no step is left that they could have an effect on.
    """
    more = "a greater trainer.epochs or trainer.max_steps goes on"
    length = [f"trainer.{name}" for name, mark in marks(TrainerSettings).items() if mark is AtResume.LENGTH]
    idle = [k for k in found if k not in (*length, "world size") and not k.startswith("eval.")]
    if finished_at is not None and idle:
        raise CheckpointError(
            f"trainer.resume={path}: that run has ended, at step {finished_at}, so that {idle[0]}="
            f"{found[idle[0]]} would change nothing; {more}, another output_dir starts anew"
        )
    for key, change in found.items():
        log.info("changed    %s=%s", key, change)
    if finished_at is not None:
        log.info("finished   at step %d already, nothing is left to train; %s", finished_at, more)


def measured_anew(changed: Iterable[str]) -> bool:
    """Return True where, after these changes, former accuracies say nothing of later ones."""
    measure = {f"eval.{name}" for name, mark in marks(EvalSettings).items() if mark is AtResume.MEASURE}
    return not measure.isdisjoint(changed)


def _changed_settings(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], stage: int
) -> dict[str, str]:
    """Compare settings; raises `CheckpointError` for those that may not change."""
    old, new = flat(_completed(before)), flat(_completed(now))
    may_differ = _marks(now)
    if old["stages"][:stage] == new["stages"][:stage]:
        may_differ["stages"] = AtResume.APPLIED
    applied: dict[str, str] = {}
    fixed: dict[str, str] = {}
    # A name explains the rest of its section, and data.size the sizes that follow it.
    for key in sorted(
        {**new, **old}, key=lambda k: (k == "stages", not k.endswith(".name"), not k.startswith("data."))
    ):
        was, is_now = old.get(key, "not set"), new.get(key, "not set")
        section = key.partition(".")[0]
        given_up = key == "backbone.pretrained" and is_now is None  # it was for the start alone
        another = f"{section}.name" in applied | fixed and not (key in old and key in new)
        setting = ".".join(key.split(".")[:2])  # that of backbone.lr_scales.body is backbone.lr_scales
        mark = _SECTIONS.get(section) or may_differ.get(key) or may_differ.get(setting)
        if was == is_now or given_up or another or mark is AtResume.FREE or key in _GONE:
            continue
        (applied if mark else fixed)[key] = f"{setting_text(is_now)} (was {setting_text(was)})"
    if fixed:
        first, *more = fixed
        raise CheckpointError(
            f"trainer.resume={path}: belongs to a run with other settings: {first}={fixed[first]}"
            + (f", and {len(more)} more: {', '.join(more[:5])}" if more else "")
            + "; give it the same ones, or another output_dir"
        )
    return applied


def _builders(config: Mapping[str, Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield each section of a configuration that there is, and what is built of it."""
    for section, kind in _SETTINGS.items():
        given = config.get(section, {} if section == "teacher" else None)  # which former versions had not
        if isinstance(given, Mapping):
            with contextlib.suppress(ConfigError):  # of a plugin that is not here: its name is another, too
                yield section, kind.builder(str(given.get("name"))) if isinstance(kind, Registry) else kind


def _marks(config: Mapping[str, Any]) -> dict[str, AtResume]:
    """Return the marks of the settings in use, by dotted names."""
    return {
        f"{section}.{name}": mark
        for section, builder in _builders(config)
        for name, mark in marks(builder).items()
    }


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a configuration with the defaults of the settings it does not have."""
    return {
        **config,
        **{name: {**defaults(builder), **config.get(name, {})} for name, builder in _builders(config)},
        "stages": config.get("stages", []),
    }


def _refuse_other_data(path: Path, state: Mapping[str, Any], faces: LabelledImages) -> None:
    """Raise `CheckpointError` where rows of the head would stand for other identities, or images differ."""
    before, now = np.asarray(state["classes"]), np.asarray(faces.classes)
    images = state.get("images", len(faces))  # an earlier version's checkpoint has neither
    problem = ""
    if len(before) != len(now):
        problem = f"knows {counted(len(before), 'identity')}, the data has {len(now):,}"
    elif not np.array_equal(before, now):
        row = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        problem = f"its identity {row} is {before[row]}, that of the data is {now[row]}"
    elif images != len(faces) or state["sample"] > len(faces):
        problem = (
            f"was made from {counted(images, 'image')} and stands at {state['sample']:,} of them in epoch "
            f"{state['epoch']}, the data has {len(faces):,}"
        )
    elif state.get("fingerprint", faces.fingerprint) != faces.fingerprint:
        problem = "was made from other images than the data has now, or their order was another"
    if problem:
        hint = "give it the same data, or another output_dir (backbone.pretrained starts from its weights)"
        raise CheckpointError(f"trainer.resume={path}: {problem}; {hint}")
