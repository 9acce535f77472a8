"""Dry run: two steps of a recipe on made-up images of the true shapes; what they take, and no run."""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from facerec import distributed
from facerec.device import free_memory, peak_memory, wait_for
from facerec.errors import FacerecError, MissingDataError, counted, duration, require, size_text
from facerec.loading.settings import DataSettings, of_source
from facerec.loading.sources import open_faces
from facerec.registry import build
from facerec.training import cost
from facerec.training.loop import Trainer
from facerec.training.run import assemble, plan_of
from facerec.training.settings import TeacherSettings

log = logging.getLogger(__name__)
STEPS = 2  # the first loads kernels, the second is like those that follow


def dry_run(config: Mapping[str, Any], composed: Sequence[Mapping[str, Any]] = ()) -> None:
    """Build a recipe, apply two steps on made-up images, and log memory, time and what was not checked.

    All ranks call this. Nothing is written.

    Args:
        config, composed: as those of `assemble`.

    Raises:
        UserError: a setting that is not as it must be, or cannot be tried without the data.
        FacerecError: the step takes more memory than is free.
    """
    data = build(DataSettings, "data", config["data"])
    plan_of(config, composed)
    identities, images, source = _numbers(data)
    _say("dry run", f"{data.name or data.kind}: {identities:,} identities, {images:,} images ({source})")
    stand_in, unchecked = _without_data(config, identities, images)
    with tempfile.TemporaryDirectory(prefix="facerec-dry-run-") as folder:
        trainer = assemble(stand_in, Path(folder))
        forecast = cost.of_run(trainer)
        _require_memory(trainer, forecast)
        seconds = _steps(trainer)
    host = torch.device("cpu")
    own = (*seconds, peak_memory(trainer.device), peak_memory(host))
    first, later, peak, peak_host = map(max, zip(*distributed.all_gather_object(own), strict=True))

    world_size, steps = trainer.loader.world_size, trainer.steps()
    per_step = trainer.settings.batch_size * trainer.settings.accumulate * world_size
    on_device = f"{size_text(peak)} on {trainer.device}, " if trainer.device.type == "cuda" else ""
    _say(
        "memory",
        f"peak {on_device}{size_text(peak_host)} in main memory, Python's and torch's own in it "
        f"(forecast without those: {size_text(forecast.memory_bytes())})",
    )
    speed = f"{counted(per_step, 'image')}, {per_step / later:,.3g} per second"
    _say("step", f"first {first:.3g} s, then {later:.3g} s for {speed}")
    whole = duration(steps * later)
    hours = f" ({steps * later * world_size / 3600:,.3g} device hours)" if world_size > 1 else ""
    _say("whole run", f"{counted(steps, 'step')}: {whole}{hours} at that speed")
    _say("not tried", "; ".join(unchecked))
    _say("dry run", "ends here: no run folder, no checkpoint and no record is left")


def _numbers(data: DataSettings) -> tuple[int, int, str]:
    """Return how many identities and images there are, in all sources of a mixture, and how that is known."""
    found = []
    for i, source in enumerate(data.parts()):
        with of_source(i):
            found.append(_numbers_of(source))
    identities, images, known = zip(*(found or [_numbers_of(data)]), strict=True)
    return sum(identities), sum(images), "; ".join(dict.fromkeys(known))


def _numbers_of(data: DataSettings) -> tuple[int, int, str]:
    if data.kind != "synthetic" and data.root and not Path(data.root).exists():
        if data.identities is None or data.images is None:
            hint = "and data.identities or data.images is null; a dry run needs the folder, or both numbers"
            raise MissingDataError(f"data.root={data.root}: there is no such folder, {hint}")
        return data.identities, data.images, f"by its settings, data.root={data.root} is not there"
    with distributed.rank_zero_first():
        faces = open_faces(data)
    return faces.num_classes, len(faces), "made up" if data.kind == "synthetic" else f"those at {faces.root}"


def _without_data(
    config: Mapping[str, Any], identities: int, images: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration with made-up images, and what it therefore does not try.

    Raises:
        ConfigError: a teacher that looks at all images, or at their names, before the first step.
    """
    teacher = build(TeacherSettings, "teacher", config.get("teacher") or {})
    hint = "belongs to the real images; a dry run can try teacher.ckpt"
    require(teacher.embeddings is None, "teacher.embeddings", teacher.embeddings, hint)
    hint = "begins with a pass over all images; a dry run goes without it (teacher.logits=0)"
    require(not (teacher.given and teacher.logits), "teacher.logits", teacher.logits, hint)
    stand_in = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    made = {"kind": "synthetic", "identities": identities, "images": images, "options": {}}
    made |= {"sources": [], "weights": None}
    stand_in["data"] |= made | {"label_noise": 0.0, "decoder": "threads"}
    stand_in["trainer"] |= {"resume": None}
    unchecked = ["the data and the time to read and decode them", "checkpoints"]
    if stages := config.get("stages"):
        stand_in["stages"] = []
        unchecked.append(f"{counted(len(stages), 'stage')} after the first, whose time is taken for all")
    if targets := config["eval"].get("targets"):
        stand_in["eval"] |= {"targets": [], "at_start": False}
        unchecked.append(f"evaluation on {', '.join(map(str, targets))}")
    if config["head"].get("init") == "class_means":
        del stand_in["head"]["init"]
        unchecked.append("head.init=class_means")
    if batches := config["backbone"].get("estimate_batch_norm"):
        stand_in["backbone"] |= {"estimate_batch_norm": 0}
        unchecked.append(f"backbone.estimate_batch_norm={batches}")
    return stand_in, unchecked


def _require_memory(trainer: Trainer, forecast: cost.Cost) -> None:
    """Raise `FacerecError` where the step would need more memory than is free, before a system kills it."""
    here = sum(
        distributed.local(p).nbytes for module in trainer.modules.values() for p in module.parameters()
    )
    needed, free = forecast.memory_bytes() - here, free_memory(trainer.device)
    if free is not None and needed > free:
        raise FacerecError(
            f"trainer.dry_run=true: beside the weights a step takes {size_text(needed)} by the forecast, and "
            f"{size_text(free)} are free ({trainer.device}); lower trainer.batch_size or head.sample_rate, "
            "shard over more processes, or take trainer.precision=bf16 or trainer.checkpoint_activations=true"
        )


def _steps(trainer: Trainer) -> list[float]:
    """Apply the steps and return their seconds, the images made beforehand."""
    trainer.set_modes()
    trainer.warm_up()
    with contextlib.closing(trainer.batches_of_steps()) as batches_of_steps:  # type: ignore[type-var]
        steps = list(itertools.islice(batches_of_steps, STEPS))
    seconds = []
    for batches in (steps * STEPS)[:STEPS]:  # an epoch may be one step
        wait_for(trainer.device)
        began = time.perf_counter()
        trainer.step(batches)
        wait_for(trainer.device)
        seconds.append(time.perf_counter() - began)
    trainer.guard.check()
    return seconds


def _say(name: str, text: str) -> None:
    if distributed.rank() == 0:
        log.info("%-10s %s", name, text)
