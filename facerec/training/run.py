"""Assemble a trainer from a composed configuration; every setting is checked before any data is touched."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facerec import distributed
from facerec.backbones import BACKBONES
from facerec.backbones.base import on_meta_device
from facerec.backbones.flops import require_batches_of_one
from facerec.backbones.recomputation import recompute_activations
from facerec.device import matmul_speed, number_format, resolve_device, seed_everything
from facerec.errors import ConfigError, UserError, counted, duration, require, settings_text
from facerec.evaluation.embedding import embed_images
from facerec.evaluation.judgement import check_select
from facerec.evaluation.metrics.base import create_metrics
from facerec.evaluation.overlap import warn_of_overlap
from facerec.evaluation.protocols.verification import load_targets, require_select
from facerec.evaluation.settings import EvalSettings
from facerec.files import require_writable
from facerec.heads import HEADS
from facerec.images.images import LabelledImages
from facerec.images.preprocessing import Preprocessing
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.models.checkpoint import is_checkpoint, newest_checkpoint
from facerec.models.model import Model
from facerec.progress import say
from facerec.registry import build
from facerec.training import cost, fine_tuning, parallel
from facerec.training.loop import Trainer
from facerec.training.optimizers import OPTIMIZERS, describe, make_optimizer
from facerec.training.reporter import Reporter
from facerec.training.schedules import SCHEDULES, beyond_the_run
from facerec.training.settings import StartSettings, TeacherSettings, TrainerSettings, without_effect
from facerec.training.stages import Entry, Stage, Stages, check_batches, entries, naming
from facerec.training.teacher import Teacher, refuse_teacher

log = logging.getLogger(__name__)


def assemble(
    config: Mapping[str, Any],
    folder: Path,
    reporters: Sequence[Reporter] = (),
    composed: Sequence[Mapping[str, Any]] = (),
) -> Trainer:
    """Build everything a run needs, and resume an earlier run where that was asked for.

    Args:
        config: plain values of configs/train.yaml.
        folder: the run's output folder.
        reporters: notified of the events of the run.
        composed: of each of its `stages`, the settings of the sections that one may change.

    Raises:
        UserError: a setting, file or folder that is not as it must be.
    """
    # First all settings, without data, so that a typing error fails at once …
    for name in ("trainer", "schedule", "optimizer", "data", "eval", "input", "backbone", "head"):
        section = config.get(name)
        require(isinstance(section, Mapping), name, section, "must be a section of settings")
    seed: Any = config.get("seed")
    good = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
    require(good, "seed", seed, "must be an integer, 0 or more and below 2^63")
    start, architecture = split_backbone(config["backbone"])
    backbone_shape = check_architecture(architecture, config["head"], start)
    settings = build(TrainerSettings, "trainer", config["trainer"])
    taught = build(TeacherSettings, "teacher", config.get("teacher") or {})
    plan = plan_of(config, composed)
    data = plan[0].data
    evaluation = build(EvalSettings, "eval", config["eval"])
    create_metrics(evaluation.metrics)  # an unknown one would else end the run at its first evaluation
    check_select(evaluation)
    input = build(Preprocessing, "input", config["input"])
    device = device_of(config)
    precision: Any = number_format(settings.precision, device)
    settings = replace(settings, precision=precision)
    if settings.precision == "fp16" and device.type != "cuda":
        raise ConfigError("trainer.precision", "fp16", f"needs CUDA and this run is on {device}; use bf16")
    require(input.shape == data.shape, "input.size", input.size, f"must be data.size={data.size} in training")
    if backbone_shape != data.shape:
        size = backbone_shape[0] if len(set(backbone_shape)) == 1 else list(backbone_shape)
        hint = f"must equal backbone.input_size={size}; data.size={size} alone sets both"
        raise ConfigError("data.size", data.size, hint)
    require_writable(folder)
    resume = distributed.rank_zero_result(lambda: resume_from(settings.resume, folder))

    # … then the data, then what depends on it.
    with distributed.rank_zero_first():  # it writes what others read: data=orl, the index of a pack
        faces = open_faces(data)
    sections = ("backbone", "head", "optimizer", "schedule", "trainer", "input", "teacher")
    alike = {f"{section}.{key}": x for section in sections for key, x in config.get(section, {}).items()}
    parallel.require_same_on_all_ranks(
        alike
        | {"trainer.precision": settings.precision, "seed": seed}
        | {"identities": faces.num_classes, "images": len(faces)}
    )
    verification_sets = load_targets(evaluation)
    require_select(verification_sets, evaluation)
    if distributed.rank() == 0:
        warn_of_overlap(faces, verification_sets)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # batches are of one size: the fastest kernels
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed_everything(seed)
    backbone = BACKBONES.from_section(architecture)
    if start.pretrained and resume is None:
        from facerec.models.weights import load_pretrained

        absorbed = load_pretrained(backbone, Path(start.pretrained), input)
        if absorbed:
            stay = all(one.start.frozen or one.start.freeze_batch_norm for one in plan)
            _unfold(backbone.to(device), absorbed, start, faces, input, stay=stay)
    trainable = frozenset(name for name, p in backbone.named_parameters() if p.requires_grad)
    fine_tuning.set_trained(backbone, start, trainable)
    if settings.sync_batch_norm:
        parallel.synchronise_batch_norm(backbone, device)
    recompute_activations(backbone, settings.checkpoint_activations)
    backbone.to(device, memory_format=torch.channels_last)
    head = HEADS.from_section(
        config["head"], num_classes=faces.num_classes, embedding_size=backbone.embedding_size
    ).to(device)
    check_batches(head, faces, data, settings.batch_size)
    if distributed.world_size() > 1:
        torch.manual_seed(parallel.rank_seed(seed))
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = Loader(faces, settings.batch_size, data, seed=seed, **ranks, pin=device.type == "cuda")
    plan[0].loader = loader
    for number, (before, stage) in enumerate(pairwise(plan), 1):
        with naming(number, stage.begin):
            stage.open(before, backbone.embedding_size)
            for key in ("frozen", "freeze") if settings.fsdp else ():
                old, new = (getattr(one.start, key) for one in (before, stage))
                require(old == new, f"backbone.{key}", new, "stays the same in a run with trainer.fsdp=true")
        if distributed.rank() == 0 and stage.loader.faces is not before.loader.faces:
            warn_of_overlap(stage.loader.faces, verification_sets)
    stages = Stages(plan, trainable, seed)
    images = {f"images of stage {n}": len(stage.loader.faces) for n, stage in enumerate(plan)}
    parallel.require_same_on_all_ranks({"stages": config.get("stages"), **images})
    stages.steps(settings)  # refuses what begins too early or too late
    if resume is None:
        fine_tuning.prepare_start(start, backbone, head, loader, input, device)
    teacher = None
    if taught.given and not start.frozen:
        refuse_teacher(taught, settings)
        teacher = Teacher(taught, backbone, head, loader, input, device, settings.precision)
    if settings.fsdp and distributed.world_size() > 1 and not start.frozen:
        bf16 = settings.gradient_exchange == "bf16"
        parallel.shard_backbone(backbone, device, bf16_gradients=bf16)
    trainer = Trainer(
        settings=settings,
        schedule=plan[0].schedule,
        start=start,
        eval_settings=evaluation,
        backbone=backbone,
        head=head,
        optimizer=make_optimizer(plan[0].optimizer, {"backbone": backbone, "head": head}, start.factors()),
        loader=loader,
        verification_sets=verification_sets,
        input=input,
        device=device,
        config=config,
        folder=folder,
        teacher=teacher,
        stages=stages,
        reporters=list(reporters),
    )
    trainer.set_modes()
    if resume is not None:
        trainer.resume(resume)
    refuse_batches_of_one(trainer)
    describe_run(trainer)
    return trainer


def plan_of(config: Mapping[str, Any], composed: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """Check the settings of all stages of a run, the first of which are its own."""
    taught = build(TeacherSettings, "teacher", config.get("teacher") or {}).given
    plan = [stage_of(config)]
    for number, (entry, own) in enumerate(zip(entries(config.get("stages") or []), composed, strict=True), 1):
        with naming(number, entry.begin):
            plan.append(stage_of({**config, **own}, entry))
            plan[-1].require_change(plan[-2], taught=taught)
    return plan


def stage_of(config: Mapping[str, Any], entry: Entry | None = None) -> Stage:
    """Check what a stage may change; without an entry, of the run's own settings."""
    start, architecture = split_backbone(config["backbone"])
    if entry is not None:
        check_architecture(architecture, config["head"], start, trained=True)
    return Stage(
        config,
        start,
        SCHEDULES.from_section(config["schedule"]),
        OPTIMIZERS.from_section(config["optimizer"]),
        build(DataSettings, "data", config["data"]),
        *(entry or ()),
    )


def _unfold(
    backbone: torch.nn.Module,
    absorbed: list[str],
    start: StartSettings,
    faces: LabelledImages,
    input: Preprocessing,
    *,
    stay: bool,
) -> None:
    """Give batch norms that a file holds folded the statistics of 256 images, unless they are to stay."""
    where = f"backbone.pretrained={start.pretrained}: {counted(len(absorbed), 'folded batch norm')}"
    if stay:
        log.info("%s absorbed: each adds the bias of the layer before, and stays as it is", where)
        return
    position_P = np.linspace(0, len(faces) - 1, min(len(faces), 256)).astype(int)
    name = "statistics of batch norm"
    model = Model(backbone, input)
    from facerec.models.onnx_weights import unfold_batch_norms

    unfold_batch_norms(
        backbone, absorbed, lambda: embed_images(model, faces, positions=position_P, name=name, flip=False)
    )
    log.info("%s unfolded: statistics of %s, at equal outputs", where, counted(len(position_P), "image"))


def device_of(config: Mapping[str, Any]) -> torch.device:
    """Return the device of a run; raise `ConfigError` for one that is not there, or other wrong settings."""
    return resolve_device(build(TrainerSettings, "trainer", config.get("trainer") or {}).device)


def split_backbone(section: Mapping[str, Any]) -> tuple[StartSettings, dict[str, Any]]:
    """Split the backbone section into where it starts from, and the network itself."""
    names = {field.name for field in fields(StartSettings)}
    start = build(StartSettings, "backbone", {k: v for k, v in section.items() if k in names})
    return start, {k: v for k, v in section.items() if k not in names}


def check_architecture(
    architecture: Mapping[str, Any],
    head: Mapping[str, Any],
    start: StartSettings | None = None,
    *,
    trained: bool = False,
) -> tuple[int, int]:
    """Build both on the meta device, so that settings are judged before data is; return the images' shape.

    `trained`: the backbone will have been, so that class means say something of an identity.
    """
    classes = max(2, distributed.world_size())  # how many there are is not known yet; at least one per rank
    with on_meta_device():
        backbone = BACKBONES.from_section(architecture)
        HEADS.from_section(head, num_classes=classes, embedding_size=backbone.embedding_size)
    fine_tuning.check(backbone, start or StartSettings(), None if trained else head.get("init"))
    return backbone.input_size


def refuse_batches_of_one(trainer: Trainer) -> None:
    """Raise `ConfigError` where a rank gets a batch of one image, which batch norm cannot take."""
    settings = trainer.settings
    if settings.sync_batch_norm and trainer.loader.world_size > 1:
        return
    for number, stage in enumerate(trainer.stages.all[trainer.position.stage :], trainer.position.stage):
        sample = trainer.position.sample if number == trainer.position.stage else 0
        if min(stage.loader.smallest_batch(start) for start in (0, sample)) > 1:
            continue
        said = naming(number, stage.begin) if number else contextlib.nullcontext()
        with said, trainer.stages.backbone_of(trainer, stage):
            _take_one(trainer)


def _take_one(trainer: Trainer) -> None:
    settings = trainer.settings
    try:
        require_batches_of_one(trainer.backbone, trainer.input.shape)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        hint = "batch norm needs two images or more in training; {}, or set backbone.freeze_batch_norm=true"
        if settings.batch_size == 1:
            raise ConfigError("trainer.batch_size", 1, hint.format("raise it")) from error
        hint = "leaves a batch of one image at the end of an epoch, and " + hint.format(
            "leave it out with null"
        )
        raise ConfigError("data.drop_last", False, hint) from error


def resume_from(setting: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to go on from: the folder's own last one, where there is one.

    Raises:
        UserError: a run would be overwritten, or the checkpoint is missing.
    """
    last = newest_checkpoint(folder / "checkpoints")
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
    if not is_checkpoint(Path(setting)):
        raise ConfigError("trainer.resume", setting, "no such file; must be auto, null or a last.pt")
    return Path(setting)


def describe_run(trainer: Trainer) -> None:
    """Log data, model, optimizer and device, with the memory and work that the run takes."""
    loader, settings, config = trainer.loader, trainer.settings, trainer.config
    backbone, shape, world_size = trainer.backbone, trainer.input.shape, loader.world_size
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    steps = -(-loader.batches_per_epoch() // settings.accumulate)
    all_steps = trainer.steps()
    schedule, plan = dict(config["schedule"]), trainer.stages.all
    later = enumerate(pairwise(plan), 1)

    costs = [_cost(trainer, stage) for stage in plan]
    counts = trainer.stages.steps(settings)
    spans = zip(costs, pairwise(counts), strict=True)
    work = sum(one.total(one.flops) * (end - begin) for one, (begin, end) in spans)
    step, largest = costs[trainer.position.stage], max(costs, key=cost.Cost.memory_bytes)
    say("measuring how fast this device multiplies …")
    speed = matmul_speed(trainer.device, settings.precision)
    trainer.meter.flops = step.flops_per_sample()
    trainer.meter.peak_flops = speed
    least = (
        f", at least {duration(work / speed)} at {speed / 1e12:.3g} TFLOP/s per process, the speed of large "
        "matrix products here"
    )
    lines = {
        "data": loader.faces.describe(),
        "backbone": f"{config['backbone']['name']}, {parameters / 1e6:.2f} M parameters, "
        f"{step.symbols['M'] / 1e9:.2f} GFLOPs (multiply-adds) at {'×'.join(map(str, shape))}",
        "head": f"{config['head']['name']}: {trainer.head.extra_repr()}",
        "optimizer": describe(trainer.optimizer),
        "schedule": f"{schedule.pop('name')}: {settings_text(schedule)}; {counted(steps, 'step')} per epoch, "
        f"{all_steps:,} in all",
        "beyond": "; ".join(beyond_the_run(plan, counts, settings.accumulate)),
        "stages": "; ".join(f"{n} at {s.begin}: {s.changes(before)}" for n, (before, s) in later),
        "device": f"{trainer.device}, {settings.precision}, batches of {settings.batch_size}"
        + (f" × {settings.accumulate}" if settings.accumulate > 1 else "")
        + (f" in each of {world_size} processes" if world_size > 1 else "")
        + (", which hold the backbone by shards (FSDP2)" if parallel.is_sharded(backbone) else "")
        + f", {counted(torch.get_num_threads(), 'CPU thread')}, seed {config['seed']}",
        "compile": _compiled_on_cpu(settings) if trainer.device.type == "cpu" else "",
        "memory": largest.line(),
        "work": f"{work * world_size:.3g} FLOPs in all" + (least if work > speed else ""),
        "input": str(trainer.input),
        "evaluation": ", ".join(f"{s.name} ({counted(len(s), 'pair')})" for s in trainer.verification_sets)
        or "none (eval.targets is empty)",
        "ignored": "; ".join(_without_effect(trainer)),
    }
    for name, text in lines.items():
        if text:
            log.info("%-10s %s", name, text)


def _compiled_on_cpu(settings: TrainerSettings) -> str:
    if not settings.compile:
        return ""
    graphs = f"; {settings.compile}: it has no CUDA graphs" if isinstance(settings.compile, str) else ""
    reason = "the first steps take minutes (a C++ compiler run per fused kernel): it loses in short runs"
    return f"on a CPU {reason}{graphs}"


def _cost(trainer: Trainer, stage: Stage) -> cost.Cost:
    """Return the cost of a step in a stage, of the head that there is now."""
    with trainer.stages.backbone_of(trainer, stage):
        return cost.of_run(trainer)


def _without_effect(trainer: Trainer) -> list[str]:
    """Return the settings that have no use in any stage from here on."""
    ahead = trainer.stages.all[trainer.position.stage :]
    idle = [without_effect(one.config, trainer.device, trainer.loader.world_size) for one in ahead]
    return [one for one in idle[0] if all(one in others for others in idle)]
