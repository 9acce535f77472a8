"""The settings of a training run: the keys of the config groups trainer and backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from facerec.errors import require, setting_text
from facerec.evaluation.settings import EvalSettings
from facerec.images.augment import CHANGES, AugmentSettings
from facerec.loading.settings import DataSettings
from facerec.registry import build, defaults
from facerec.settings import (
    Applied,
    Count,
    CountOrNull,
    FewOrNull,
    Free,
    Length,
    NotNegative,
    Positive,
    Range,
    check_ranges,
)

if TYPE_CHECKING:
    from facerec.loading.loader import Loader

_ClipNorm = Annotated[
    float | None, Range(lambda x: x is None or x > 0, "must be greater than 0, or null for no clipping")
]
_Decay = Annotated[
    float | None, Range(lambda d: d is None or 0 < d < 1, "must be above 0 and below 1, or null for none")
]
_Every = Annotated[bool | int, Range(lambda n: n >= 0, "must be true, false or a number of steps")]
_Scale = Annotated[float, Range(lambda x: x > 0, "must be above 0 (or frozen=true)")]
_Scales = Annotated[
    dict[str, float] | None,
    Range(
        lambda scales: all(x > 0 for x in (scales or {}).values()),
        "must be factors above 0 by pattern (or freeze=[PATTERN]), or null",
    ),
]
_Batches = Annotated[int, Range(lambda n: n >= 0, "must be a number of batches, or 0 for none")]
_Kept = Annotated[int, Range(lambda n: 1 <= n <= 1000, "must be 1 to 1,000")]
_Path = Annotated[str | None, Range(lambda path: path != "", "must be a path, or null for none")]


@dataclass(frozen=True)
class TrainerSettings:
    """Length and manner of a training; configs/trainer/default.yaml says what each setting means.

    Raises:
        ConfigError: for a value out of range.
    """

    epochs: Length[Positive] = 20.0
    max_steps: Length[CountOrNull] = None
    batch_size: Applied[Count] = 128
    accumulate: Applied[Count] = 1
    precision: Applied[Literal["auto", "fp32", "bf16", "fp16"]] = "fp32"
    device: Free[str] = "auto"
    clip_norm: Applied[_ClipNorm] = None
    clip_part: Applied[Literal["all", "backbone"]] = "all"
    ema: Applied[_Decay] = None
    resume: Free[Literal["auto"] | str | None] = "auto"
    log_every: Free[Count] = 20
    save_every: Free[CountOrNull] = None
    keep_last: Free[_Kept] = 2
    save_in_background: Free[bool] = False
    sync_batch_norm: Applied[bool] = False
    gradient_exchange: Applied[Literal["fp32", "bf16"]] = "fp32"
    check_replicas: Free[_Every] = False
    profile: Free[bool] = False
    checkpoint_activations: Free[bool] = False
    fsdp: Free[bool] = False
    compile: Free[bool | Literal["reduce-overhead", "max-autotune"]] = False
    threads: Free[FewOrNull] = None
    reference: Free[_Path] = None
    dry_run: Free[bool] = False

    def __post_init__(self) -> None:
        check_ranges(self, "trainer")
        uncombined = {
            "compile": "needs trainer.fsdp=false, whose gathering by block would break the graph",
            "check_replicas": "needs trainer.fsdp=false, with which no rank has what another has",
        }
        for name, hint in uncombined.items() if self.fsdp else ():
            require(not getattr(self, name), f"trainer.{name}", getattr(self, name), hint)
        hint = "with trainer.fsdp=true nobody has tried its scaler; use bf16"
        require(not (self.fsdp and self.precision == "fp16"), "trainer.precision", self.precision, hint)
        hint = (
            f"with trainer.compile={self.compile} a batch overwrites the gradients of the one before; use 1, "
        )
        graphs = isinstance(self.compile, str) and self.accumulate > 1
        require(not graphs, "trainer.accumulate", self.accumulate, f"{hint}or trainer.compile=true")

    def steps_of(self, epochs: float, loader: Loader) -> int:
        """Return the number of steps of so many epochs."""
        per_epoch = math.ceil(loader.batches_per_epoch() / self.accumulate)
        images_per_step = loader.batch_size * loader.world_size * self.accumulate
        rest, passes = math.modf(epochs)
        last = min(per_epoch, math.ceil(rest * len(loader.faces) / images_per_step - 1e-9))
        return int(passes) * per_epoch + last


@dataclass(frozen=True)
class StartSettings:
    """Start of the backbone: the keys that every file of the group backbone has (configs/backbone/base.yaml).

    Raises:
        ConfigError: for a value out of range.
    """

    pretrained: _Path = None
    frozen: Applied[bool] = False
    freeze: Applied[list[str]] = field(default_factory=list)
    lr_scale: Applied[_Scale] = 1.0
    lr_scales: Applied[_Scales] = None
    freeze_batch_norm: Applied[bool] = False
    estimate_batch_norm: Free[_Batches] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "backbone")

    def factors(self) -> dict[str, float]:
        """Return the factors on the learning rate by pattern, for `parameter_groups`."""
        further = {f"backbone.{pattern}": self.lr_scale * x for pattern, x in (self.lr_scales or {}).items()}
        return {"backbone": self.lr_scale, **further}


@dataclass(frozen=True)
class TeacherSettings:
    """A model whose embeddings the backbone learns from beside the labels (`teacher` in configs/train.yaml).

    Raises:
        ConfigError: for a value out of range, or where nothing is taught.
    """

    ckpt: Applied[_Path] = None
    embeddings: Applied[_Path] = None
    input: Applied[dict[str, Any] | None] = None
    backbone: Applied[str | None] = None
    cosine: Applied[NotNegative] = 1.0
    logits: Applied[NotNegative] = 0.0
    scale: Applied[Positive] = 16.0
    features: Applied[NotNegative] = 0.0
    layers: Applied[dict[str, str] | None] = None

    def __post_init__(self) -> None:
        check_ranges(self, "teacher")
        both = self.ckpt is not None and self.embeddings is not None
        require(not both, "teacher.embeddings", self.embeddings, "leave it out, or teacher.ckpt")
        taught = self.cosine + self.logits + self.features > 0 or not self.given
        hint = "with teacher.logits and teacher.features 0, nothing is taught"
        require(taught, "teacher.cosine", self.cosine, hint)
        if self.features and self.given:
            hint = "needs teacher.ckpt and teacher.layers={MODULE: MODULE}, of the backbone and its network"
            require(self.ckpt is not None and bool(self.layers), "teacher.features", self.features, hint)

    @property
    def given(self) -> bool:
        """True where there is a teacher."""
        return self.ckpt is not None or self.embeddings is not None


def without_effect(config: Mapping[str, Any], device: torch.device, world_size: int) -> list[str]:
    """Return settings that differ from their defaults and have no use in this run, each with its use."""
    data, augment = config["data"], config["data"].get("augment") or {}
    trained, teacher = not config["backbone"].get("frozen"), config.get("teacher") or {}
    uses: list[tuple[str, bool, str]] = [
        ("for data.shuffle=identity", data.get("shuffle") == "identity", "data.images_per_identity"),
        ("for data.shuffle=block", data.get("shuffle") == "block", "data.block_size data.window"),
        ("for data.label_noise above 0", bool(data.get("label_noise")), "data.noise_kind data.noise_seed"),
        ("for GPUs; here one core decodes, and threads is faster", device.type != "cpu", "data.decoder"),
        (
            "for several processes",
            world_size > 1,
            "trainer.save_in_background trainer.sync_batch_norm trainer.check_replicas trainer.fsdp "
            "trainer.gradient_exchange",
        ),
        (
            "for head.sharded=true or trainer.fsdp=true",
            config["head"].get("sharded", False) or config["trainer"].get("fsdp"),
            "trainer.save_in_background",
        ),
        (
            "for a backbone that is trained",
            trained,
            "trainer.checkpoint_activations trainer.fsdp trainer.ema backbone.freeze backbone.lr_scale "
            "backbone.lr_scales backbone.freeze_batch_norm teacher.ckpt teacher.embeddings",
        ),
        (
            "for teacher.ckpt or teacher.embeddings",
            build(TeacherSettings, "teacher", teacher).given,
            "teacher.cosine teacher.logits teacher.scale teacher.features teacher.layers",
        ),
        ("for facerec-eval", False, "eval.cache eval.sanity"),
        ("for eval.bootstrap above 0", config["eval"].get("bootstrap") != 0, "eval.seed"),
        *(
            (f"for data.augment.{change} above 0", bool(augment.get(change)), f"data.augment.{strength}")
            for strength in defaults(AugmentSettings)
            for change in CHANGES
            if strength.startswith(f"{change}_")
        ),
    ]
    idle: dict[str, str] = {}
    for use, in_use, keys in uses:
        for key in () if in_use else keys.split():
            section, _, name = key.rpartition(".")
            given = augment if section == "data.augment" else config.get(section) or {}
            if name in given and given[name] != defaults(SETTINGS[section])[name]:
                idle.setdefault(f"{key}={setting_text(given[name])}", use)
    return [f"{setting} ({use})" for setting, use in idle.items()]


SETTINGS: dict[str, Any] = {
    "trainer": TrainerSettings,
    "data": DataSettings,
    "data.augment": AugmentSettings,
    "backbone": StartSettings,
    "teacher": TeacherSettings,
    "eval": EvalSettings,
}
