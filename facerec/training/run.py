"""From a composed configuration to a trainer: every setting is checked before any data is touched."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facerec import processes, sharded_checkpoint
from facerec.backbones import BACKBONES
from facerec.backbones.base import without_memory
from facerec.backbones.flops import activation_bytes, gflops, require_batches_of_one
from facerec.backbones.recomputation import recompute_activations
from facerec.backbones.weights import load_pretrained
from facerec.data.loader import Loader
from facerec.data.settings import DataSettings
from facerec.data.sources import open_faces
from facerec.device import matmul_speed, resolve_device, seed_everything
from facerec.errors import ConfigError, UserError, require
from facerec.evaluation.model import Input
from facerec.evaluation.overlap import warn_of_overlap
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.targets import load_targets
from facerec.files import Unfinished
from facerec.heads import HEADS
from facerec.registry import build
from facerec.training import cost, parallel
from facerec.training.half_weights import require_sgd
from facerec.training.last import find
from facerec.training.loop import Trainer
from facerec.training.meter import Yardstick
from facerec.training.optimizer import describe, make_optimizer
from facerec.training.reporter import Reporter
from facerec.training.settings import (
    OptimizerSettings,
    ScheduleSettings,
    StartSettings,
    TrainerSettings,
    without_effect,
)

log = logging.getLogger(__name__)


def assemble(config: Mapping[str, Any], folder: Path, reporters: Sequence[Reporter] = ()) -> Trainer:
    """Build everything a run needs, and take up an earlier run where that was asked for.

    Args:
        config: plain values, with the sections seed, backbone, head, data, optimizer, schedule, trainer, eval
            and input.
        folder: the run's output folder.
        reporters: what follows the run.

    Raises:
        UserError: a setting, file or folder that is not as it must be.
    """
    # First what can be judged without data, so that a typing error costs no time …
    for name in ("trainer", "schedule", "optimizer", "data", "eval", "input", "backbone", "head"):
        section = config.get(name)
        require(isinstance(section, Mapping), name, section, "must be a section of settings")
    seed: Any = config.get("seed")
    good = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
    require(good, "seed", seed, "must be a whole number, 0 or more and below 2^63")
    settings = build(TrainerSettings, "trainer", config["trainer"])
    schedule = build(ScheduleSettings, "schedule", config["schedule"])
    optimizer_settings = build(OptimizerSettings, "optimizer", config["optimizer"])
    data = build(DataSettings, "data", config["data"])
    evaluation = build(EvalSettings, "eval", config["eval"])
    input = build(Input, "input", config["input"])
    start, architecture = split_backbone(config["backbone"])
    device = device_of(config)
    if settings.precision == "fp16" and device.type != "cuda":
        raise ConfigError("trainer.precision", "fp16", f"needs CUDA and this run is on {device}; use bf16")
    require_sgd(optimizer_settings.name, settings.precision, config["head"].get("weight_dtype", "fp32"))
    require(input.shape == data.shape, "input.size", input.size, f"must be data.size={data.size} in training")
    try_out(architecture, config["head"])
    writable(folder)
    resume = processes.by_first(lambda: resume_from(settings.resume, folder))

    # … then the data, then what depends on it.
    with processes.first_alone():  # which makes what is made on first use: data=orl, the index of a pack
        faces = open_faces(data)
    sections = ("backbone", "head", "optimizer", "schedule", "trainer", "input")
    alike = {f"{section}.{key}": value for section in sections for key, value in config[section].items()}
    parallel.require_alike(alike | {"seed": seed, "identities": faces.num_classes, "images": len(faces)})
    verification_sets = load_targets(evaluation)
    if processes.rank() == 0:
        warn_of_overlap(faces, verification_sets)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed_everything(seed)
    backbone = BACKBONES.from_section(architecture)
    if start.pretrained and resume is None:
        load_pretrained(backbone, Path(start.pretrained))
    if start.frozen:  # else as the backbone says: some keep a parameter of their own fixed
        backbone.requires_grad_(False)
    if settings.sync_batch_norm:
        parallel.synchronise_batch_norm(backbone, device)
    recompute_activations(backbone, settings.checkpoint_activations)
    backbone.to(device, memory_format=torch.channels_last)
    head = HEADS.from_section(
        config["head"], num_classes=faces.num_classes, embedding_size=backbone.embedding_size
    ).to(device)
    together = {"full": None, "identity": data.images_per_identity}.get(data.shuffle, 1)
    head.check_batches(np.bincount(faces.label_N), settings.batch_size, together)
    modules = {"backbone": backbone, "head": head}
    if processes.count() > 1:  # dropout differs between processes
        torch.manual_seed(parallel.seed_of(seed))
    loader = Loader(
        faces,
        settings.batch_size,
        seed=seed,
        rank=processes.rank(),
        world_size=processes.count(),
        pin=device.type == "cuda",
        **data.loading(),
    )
    trainer = Trainer(
        settings=settings,
        schedule_settings=schedule,
        start=start,
        eval_settings=evaluation,
        backbone=backbone,
        head=head,
        optimizer=make_optimizer(optimizer_settings, modules, {"backbone": start.lr_scale}),
        loader=loader,
        verification_sets=verification_sets,
        input=input,
        device=device,
        config=config,
        folder=folder,
        reporters=reporters,
    )
    trainer.set_modes()
    if resume is not None:
        trainer.resume(resume)
    refuse_batches_of_one(trainer)
    describe_run(trainer)
    return trainer


def device_of(config: Mapping[str, Any]) -> torch.device:
    """The device of a run; raises `ConfigError` for one that is not there, or other wrong settings."""
    return resolve_device(build(TrainerSettings, "trainer", config.get("trainer") or {}).device)


def split_backbone(section: Mapping[str, Any]) -> tuple[StartSettings, dict[str, Any]]:
    """The backbone section as where it starts from, and what network it is."""
    names = {field.name for field in fields(StartSettings)}
    start = build(StartSettings, "backbone", {k: v for k, v in section.items() if k in names})
    return start, {k: v for k, v in section.items() if k not in names}


def try_out(architecture: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    """Build backbone and head without memory, so that their settings are judged before data is touched."""
    classes = max(2, processes.count())  # how many there are is not known yet; some for every process
    with without_memory():
        backbone = BACKBONES.from_section(architecture)
        HEADS.from_section(head, num_classes=classes, embedding_size=backbone.embedding_size)


def refuse_batches_of_one(trainer: Trainer) -> None:
    """Raise `ConfigError` where a process gets a batch of one image, which batch norm cannot take."""
    loader, settings = trainer.loader, trainer.settings
    smallest = min(loader.smallest_batch(start) for start in (0, trainer.position.sample))
    if smallest > 1 or (settings.sync_batch_norm and loader.world_size > 1):
        return
    try:
        require_batches_of_one(trainer.backbone, trainer.input.shape)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        mend = "batch norm needs two images or more in training; {}, or set backbone.freeze_batch_norm=true"
        if settings.batch_size == 1:
            raise ConfigError("trainer.batch_size", 1, mend.format("raise it")) from error
        mend = "leaves a batch of one image at the end of an epoch, and " + mend.format(
            "leave it out with null"
        )
        raise ConfigError("data.drop_last", False, mend) from error


def writable(folder: Path) -> None:
    """Raise `UserError` unless files can be made in `folder`, which is made where it is not there."""
    try:
        Unfinished(folder / "probe").drop()
    except OSError as error:
        raise UserError(f"output_dir={folder}: cannot be written ({error.strerror})") from error


def resume_from(setting: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: the folder's own last state, where there is one.

    Raises:
        UserError: a run would be overwritten, or the checkpoint is missing.
    """
    last = find(folder / "checkpoints")
    if last is not None:
        if setting is None:
            raise UserError(
                f"output_dir={folder}: holds a run already; trainer.resume=auto continues it, "
                "another output_dir starts a new one"
            )
        if setting != "auto" and os.path.realpath(setting) != os.path.realpath(last):
            log.info("trainer.resume=%s: is left aside; the run goes on from its own %s", setting, last)
        return last
    if setting is None or setting == "auto":
        return None
    if not Path(setting).is_file() and not sharded_checkpoint.is_one(Path(setting)):
        raise ConfigError("trainer.resume", setting, "no such file; must be auto, null or a last.pt")
    return Path(setting)


def describe_run(trainer: Trainer) -> None:
    """Say in the log what is about to be trained, on what, and how."""
    loader, settings, config = trainer.loader, trainer.settings, trainer.config
    backbone, shape = trainer.backbone, trainer.input.shape
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    steps = -(-loader.batches_per_epoch() // settings.accumulate)
    whole = steps * settings.epochs if settings.max_steps is None else settings.max_steps
    schedule = {k: v for k, v in config["schedule"].items() if k != "name"}
    multiply_adds = gflops(backbone, shape)
    half = settings.precision != "fp32"
    known = not (trainer.start.frozen or settings.checkpoint_activations)
    activation = activation_bytes(backbone, shape, half=half) if known else 0
    step = cost.of_run(trainer, multiply_adds, activation)
    speed = matmul_speed(trainer.device, settings.precision)
    a_picture = step.flops / (settings.batch_size * settings.accumulate)
    trainer.meter.yardstick = Yardstick(trainer.device, a_picture, speed)
    lines = {
        "data": loader.faces.describe(),
        "backbone": f"{config['backbone']['name']}, {parameters / 1e6:.2f} M parameters, "
        f"{multiply_adds:.2f} GFLOPs (multiply-adds) at {'×'.join(map(str, shape))}",
        "head": f"{config['head']['name']}: {trainer.head.extra_repr()}",
        "optimizer": describe(trainer.optimizer),
        "schedule": f"{trainer.schedule.name} {schedule}, {steps:,} steps an epoch, {whole:,.0f} in all",
        "device": f"{trainer.device}, {settings.precision}, batches of {settings.batch_size}"
        + (f" × {settings.accumulate}" if settings.accumulate > 1 else "")
        + (f" in each of {processes.count()} processes" if processes.count() > 1 else "")
        + f", {torch.get_num_threads()} CPU threads, seed {config['seed']}",
        "memory": step.line(),
        "work": f"{whole * step.flops * processes.count():.3g} FLOPs in all: not less than "
        f"{timedelta(seconds=round(whole * step.flops / speed))} at the speed of large matrix products here, "
        f"{speed / 1e12:.3g} TFLOP/s a process",
        "input": str(trainer.input),
        "evaluation": ", ".join(f"{s.name} ({len(s.issame_N):,} pairs)" for s in trainer.verification_sets)
        or "none (eval.targets is empty)",
    }
    idle = without_effect(config, trainer.device, loader.world_size)
    if idle:
        lines["ignored"] = "; ".join(idle)
    for name, text in lines.items():
        log.info("%-10s %s", name, text)
