"""The settings of a training run: the keys of the config groups trainer, optimizer, schedule and backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

import torch

from facerec.data.augment import AugmentSettings
from facerec.data.settings import DataSettings
from facerec.errors import require
from facerec.evaluation.settings import EvalSettings


@dataclass(frozen=True)
class TrainerSettings:
    """How long and in what way to train.

    Args:
        epochs: passes over the data; may end in the middle of one (fractions are allowed).
        max_steps: stop after so many optimizer steps, whatever `epochs` says; null: no such limit.
        batch_size: pictures a process takes at once.
        accumulate: batches whose gradients are added before a step.
        precision: number format of the backbone: ``fp32``, ``bf16`` or ``fp16`` (CUDA only, with a scaler).
            The head always computes in fp32.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        clip_norm: largest norm of all gradients together; null: no clipping.
        resume: ``auto`` continues from ``checkpoints/last.pt`` of the output folder if it is there; a path
            continues from that checkpoint, once the output folder has one of its own from that; null starts
            anew and refuses a folder that holds a run.
        log_every: steps between log lines and rows of metrics.jsonl.
        save_every: steps between checkpoints; null: at evaluations, at the end and when interrupted.
        keep_last: how many of the last checkpoints to keep, 1 or more; where the newest is found damaged, a
            resume goes on from the one before. Each takes its place on the disk.
        save_in_background: where classes are shared out over processes, write checkpoints while the run goes
            on; takes main memory for a copy.
        sync_batch_norm: batch norm over the batches of all processes together (CUDA).
        check_replicas: stop where a rank's weights, or the optimizer's state of them, are not those of rank 0
            to the bit: looked at every so many steps, true: at every one. Takes a copy to main memory and a
            hash of it.
        profile: measure where the time of a step goes, and trace a few of them, into the folder ``profile``.
        checkpoint_activations: let the backbone's blocks compute their activations again in the backward pass
            instead of keeping them: less memory for one more forward pass.
        compile: `torch.compile` the backbone.
        threads: CPU threads of torch in this process; null: torch's own choice.

    Raises:
        ConfigError: for a value out of range.
    """

    epochs: float = 20.0
    max_steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    clip_norm: float | None = None
    resume: Literal["auto"] | str | None = "auto"
    log_every: int = 20
    save_every: int | None = None
    keep_last: int = 2
    save_in_background: bool = False
    sync_batch_norm: bool = False
    check_replicas: bool | int = False
    profile: bool = False
    checkpoint_activations: bool = False
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        require(self.epochs > 0, "trainer.epochs", self.epochs, "must be greater than 0")
        for name in (
            "max_steps",
            "batch_size",
            "accumulate",
            "log_every",
            "save_every",
            "keep_last",
            "threads",
        ):
            value = getattr(self, name)
            most = 1024 if name == "threads" else 10**10
            good = value is None or 1 <= value <= most
            require(good, f"trainer.{name}", value, f"must be 1 or more, and at most {most:,}")
        require(
            self.check_replicas >= 0,
            "trainer.check_replicas",
            self.check_replicas,
            "must be true, false or a number of steps",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0,
            "trainer.clip_norm",
            self.clip_norm,
            "must be greater than 0, or null for no clipping",
        )


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer; its two parameter groups are those with and those without weight decay.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: learning rate at factor 1 of the schedule.
        momentum, nesterov: of SGD.
        betas: of AdamW.
        weight_decay: of weights; never of batch norm, biases and PReLU slopes unless `decay_all`.
        decay_all: weight decay on everything.

    Raises:
        ConfigError: for a value out of range.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 5e-4
    decay_all: bool = False

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "must be greater than 0")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "must be from 0 to below 1")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must be 0 or more")
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good, "optimizer.betas", self.betas, "must be two numbers from 0 to below 1")
        usable = not self.nesterov or self.momentum > 0
        require(usable, "optimizer.nesterov", self.nesterov, "needs optimizer.momentum greater than 0")


@dataclass(frozen=True)
class ScheduleSettings:
    """The course of the learning rate, as a factor on `optimizer.lr`.

    Args:
        name: ``multistep``, ``poly``, ``cosine`` or ``constant``.
        unit: what `milestones` and `warmup` count: ``epochs`` or ``steps``.
        milestones: where multistep multiplies by `gamma`; ascending.
        gamma: factor at each milestone, in (0, 1].
        power: of poly's (1 − progress)^power.
        final: factor at which poly and cosine end, in [0, 1).
        warmup: linear rise from 0 over so many units.

    Raises:
        ConfigError: for a value out of range.
    """

    name: Literal["multistep", "poly", "cosine", "constant"] = "multistep"
    unit: Literal["epochs", "steps"] = "epochs"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    power: float = 2.0
    final: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        ascending = (
            sorted(set(self.milestones)) == list(self.milestones) and min(self.milestones, default=1) > 0
        )
        require(ascending, "schedule.milestones", self.milestones, "must be positive and ascending")
        require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "must be above 0 and at most 1")
        require(self.power > 0, "schedule.power", self.power, "must be greater than 0")
        require(0 <= self.final < 1, "schedule.final", self.final, "must be from 0 to below 1")
        require(self.warmup >= 0, "schedule.warmup", self.warmup, "must be 0 or more")


@dataclass(frozen=True)
class StartSettings:
    """Where the backbone starts from: the keys of every file in the config group backbone but its own.

    Args:
        pretrained: weights to start from: a checkpoint of ours, or a state dict of the published layout.
        frozen: keep the backbone as it is (in eval mode) and train the head alone.
        lr_scale: factor on the backbone's learning rate, for fine-tuning.
        freeze_batch_norm: keep the running statistics of batch norm as they are.

    Raises:
        ConfigError: for a value out of range.
    """

    pretrained: str | None = None
    frozen: bool = False
    lr_scale: float = 1.0
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        require(self.pretrained != "", "backbone.pretrained", "", "must be a path, or null for none")
        require(self.lr_scale > 0, "backbone.lr_scale", self.lr_scale, "must be above 0 (or frozen=true)")


def without_effect(config: Mapping[str, Any], device: torch.device, world_size: int) -> list[str]:
    """What a run would leave aside: settings that differ from their defaults and have no use here.

    Returns:
        ``section.key=value (when it has an effect)`` of each.
    """
    data, head = config["data"], config["head"]
    optimizer, schedule = config["optimizer"].get("name"), config["schedule"].get("name")
    start, augment = config["backbone"], data.get("augment") or {}
    rules: list[tuple[bool, str, str, str]] = [
        (data.get("shuffle") != "identity", "data", "images_per_identity", "for data.shuffle=identity"),
        (data.get("shuffle") != "block", "data", "block_size window", "for data.shuffle=block"),
        (not data.get("label_noise"), "data", "noise_kind noise_seed", "for data.label_noise above 0"),
        (device.type == "cpu", "data", "decoder", "for GPUs; here one core decodes, and threads is faster"),
        (optimizer == "adamw", "optimizer", "momentum nesterov", "for sgd"),
        (optimizer == "sgd", "optimizer", "betas", "for adamw"),
        (schedule != "multistep", "schedule", "milestones gamma", "for multistep"),
        (schedule != "poly", "schedule", "power", "for poly"),
        (schedule not in ("poly", "cosine"), "schedule", "final", "for poly and cosine"),
        (
            world_size == 1,
            "trainer",
            "save_in_background sync_batch_norm check_replicas",
            "for several processes",
        ),
        (not head.get("sharded", False), "trainer", "save_in_background", "for head.sharded=true"),
        (bool(start.get("frozen")), "trainer", "checkpoint_activations", "for a backbone that is trained"),
        (
            bool(start.get("frozen")),
            "backbone",
            "lr_scale freeze_batch_norm",
            "for a backbone that is trained",
        ),
        (True, "eval", "cache sanity", "for facerec-eval"),
        (config["eval"].get("bootstrap") == 0, "eval", "seed", "for eval.bootstrap above 0"),
    ]
    idle = {
        f"{section}.{key}={config[section][key]} ({use})": None
        for unused, section, keys, use in rules
        for key in keys.split()
        if unused and key in config[section] and config[section][key] != _default(_SETTINGS[section], key)
    }
    strengths = {"crop_side": "crop", "low_resolution_side": "low_resolution", "blur_sigma": "blur"}
    strengths |= {"color_strength": "color", "jpeg_quality": "jpeg", "cutout_side": "cutout"}
    for key, part in strengths.items():
        if key in augment and not augment.get(part) and augment[key] != _default(AugmentSettings, key):
            idle[f"data.augment.{key}={augment[key]} (for data.augment.{part} above 0)"] = None
    return list(idle)


_SETTINGS: dict[str, Any] = {
    "optimizer": OptimizerSettings,
    "schedule": ScheduleSettings,
    "trainer": TrainerSettings,
    "data": DataSettings,
    "backbone": StartSettings,
    "eval": EvalSettings,
}


def _default(settings: Any, key: str) -> Any:
    field_of = settings.__dataclass_fields__[key]
    return field_of.default if field_of.default is not MISSING else field_of.default_factory()
