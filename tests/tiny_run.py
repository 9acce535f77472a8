"""A trainer over a tiny network and images made on the spot, for tests of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facerec import distributed
from facerec.evaluation.settings import EvalSettings
from facerec.heads import create_head
from facerec.images.decode import ppm
from facerec.images.images import LabelledImages
from facerec.images.preprocessing import Preprocessing
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.packs.verification import VerificationSet
from facerec.training import parallel
from facerec.training.loop import Trainer
from facerec.training.optimizers import OPTIMIZERS, make_optimizer
from facerec.training.schedules import SCHEDULES
from facerec.training.settings import StartSettings, TrainerSettings
from facerec.training.stages import Stage, Stages


class MemoryImages(LabelledImages):
    """Encoded images with their labels; `classes` of them, or as many as there are labels."""

    def __init__(
        self, title: str, label_N: npt.NDArray[np.int64], files: Sequence[bytes] = (), classes: int = 0
    ) -> None:
        self.title, self.root = title, Path(f"/{title}")
        self.label_N, self.classes = label_N, np.arange(classes or label_N.max() + 1)
        self.files = files

    def encoded(self, i: int) -> bytes:
        return self.files[i]

    def where(self, i: int) -> str:
        return f"key {i} of /{self.title}"

    def describe(self) -> str:
        return self.title


class TinyFaces(MemoryImages):
    """`identities` × 6 images of 16×16 pixels: a colour for each identity, with noise."""

    def __init__(self, identities: int = 5, each: int = 6) -> None:
        generator = np.random.default_rng(0)
        colour = generator.integers(40, 200, (identities, 1, 1, 3))
        noise = generator.integers(-40, 40, (identities * each, 16, 16, 3))
        pixels = (np.repeat(colour, each, axis=0) + noise).clip(0, 255).astype(np.uint8)
        super().__init__("tiny", np.repeat(np.arange(identities), each), [*map(ppm, pixels)])


def made_set(name: str = "made") -> VerificationSet:
    """20 genuine and 20 impostor pairs of 40 random images."""
    images = list(np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), np.uint8))
    return VerificationSet(name, images, np.arange(80) % 40, np.arange(40) % 2 == 0)


def tiny_backbone(dropout: float = 0.2) -> nn.Module:
    """Convolution, batch norm, PReLU, dropout, linear: one of everything that has state or randomness."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 8),
    )


def tiny_trainer(
    folder: Path,
    *,
    seed: int = 3,
    head: str = "arcface",
    reporters: Any = (),
    dropout: float = 0.2,
    each: int = 6,
    head_options: Mapping[str, Any] = MappingProxyType({}),
    **given: Any,
) -> Trainer:
    """A trainer as `assemble` makes it; `given` are settings by their dotted name with ``_`` for the dot."""
    sections: dict[str, dict[str, Any]] = {
        section: {} for section in ("trainer", "optimizer", "schedule", "start", "eval")
    }
    for key, value in given.items():
        section, _, name = key.partition("_")
        sections[section][name] = value
    torch.manual_seed(seed)
    settings = TrainerSettings(**({"epochs": 3, "batch_size": 7, "log_every": 1} | sections["trainer"]))
    start = StartSettings(**sections["start"])
    backbone = tiny_backbone(dropout).requires_grad_(not start.frozen)
    faces = TinyFaces(each=each)
    options = {**({"s": 16.0} if head in ("arcface", "cosface") else {}), **head_options}
    loss = create_head(head, num_classes=faces.num_classes, embedding_size=8, **options)
    torch.manual_seed(parallel.rank_seed(seed))
    optimizer = OPTIMIZERS.from_section({"name": "sgd"} | sections["optimizer"])
    modules = {"backbone": backbone, "head": loss}
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    data = DataSettings(size=16)
    config = {"seed": seed, "backbone": {"name": "tiny"}, "head": {"name": head}, "data": {"name": "tiny"}}
    schedule = SCHEDULES.from_section({"name": "cosine"} | sections["schedule"])
    stage = Stage(config, start, schedule, optimizer, data)
    stage.loader = Loader(faces, settings.batch_size, data, seed=seed, **ranks)
    return Trainer(
        settings=settings,
        schedule=schedule,
        start=start,
        eval_settings=EvalSettings(**sections["eval"]),
        backbone=backbone,
        head=loss,
        optimizer=make_optimizer(optimizer, modules, {"backbone": start.lr_scale}),
        loader=stage.loader,
        verification_sets=[],
        input=Preprocessing(size=16),
        device=torch.device("cpu"),
        config=config,
        folder=folder,
        stages=Stages([stage]),
        reporters=reporters,
    )
