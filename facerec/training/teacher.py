"""Distil: a backbone learns from a teacher's embeddings beside the labels; the teacher itself stays as it is.

With the teacher that a fine-tuned backbone started from, this keeps its embeddings from drifting away.

Shape suffixes: B batch, C identities, D embedding size (T of the teacher), H height, W width,
P positions of a feature map.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, kl_div, log_softmax

from facerec.device import autocast
from facerec.errors import CheckpointError, ConfigError, MissingDataError, nearest, require
from facerec.heads import Head
from facerec.heads.base import HeadOutput
from facerec.heads.mechanism.batch import inverse_norm
from facerec.images.images import LabelledImages
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import Batch
from facerec.loading.loader import Loader
from facerec.models.opening import load_model
from facerec.training.fine_tuning import Embed, class_means
from facerec.training.settings import TeacherSettings, TrainerSettings

log = logging.getLogger(__name__)


class Teacher:
    """The losses of a student backbone towards a teacher's embeddings, see `TeacherSettings`.

    Args:
        backbone, head, input, precision: the student's; `device` is that of all.
        loader: of the training images; for logits the teacher embeds them once before the first step.

    Raises:
        ConfigError: a teacher, or a weight, that does not fit the student.
        CheckpointError, MissingDataError: the teacher's file is not there, or not what it should be.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        backbone: nn.Module,
        head: Head,
        loader: Loader,
        input: Preprocessing,
        device: torch.device,
        precision: str,
    ) -> None:
        self.settings, self.head = settings, head
        self.features: dict[str, Tensor] = {}  # of the student, at the last forward pass
        self.taught: dict[str, Tensor] = {}  # of the teacher
        if settings.ckpt is not None:
            self.embed = self._network(settings.ckpt, input, device, precision)
            size = self.embed(torch.zeros(1, 3, *input.shape, device=device), None).shape[1]  # type: ignore[arg-type]
        else:
            self.embed = _stored(Path(str(settings.embeddings)), loader.faces, device)
            size = np.load(str(settings.embeddings), mmap_mode="r").shape[1]
        student = int(backbone.embedding_size)  # type: ignore[arg-type]
        if settings.cosine and size != student:
            hint = f"compares embeddings of one size: the teacher's have {size} numbers, so give "
            hint += f"backbone.embedding_size={size}; or teacher.cosine=0 teacher.logits=1"
            raise ConfigError("teacher.cosine", settings.cosine, hint)
        if settings.features:
            _record(backbone, settings.layers or (), self.features, "backbone", training=True)
        self.mean_CT: Tensor | None = None
        if settings.logits:
            require_class_rows(settings, head)
            self.mean_CT = class_means(self.embed, loader, input, device)
        log.info("teacher    %s, %d numbers per face", settings.ckpt or settings.embeddings, size)

    def add(self, output: HeadOutput, embedding_BD: Tensor, image_BCHW: Tensor, batch: Batch) -> HeadOutput:
        """Return the head's output with the teacher's losses added, and their values in the statistics."""
        target_BT = self.embed(image_BCHW, batch)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            losses = self.losses(_unit(embedding_BD.float()), _unit(target_BT))
        statistics = {f"teacher_{name}": value.detach() for name, value in losses.items()}
        weighted = (getattr(self.settings, name) * value for name, value in losses.items())
        return HeadOutput(sum(weighted, output.loss), output.statistics | statistics)

    def losses(self, unit_BD: Tensor, target_BT: Tensor) -> dict[str, Tensor]:
        """Return the losses that are in use, of the unit embeddings of both, by their weights' names."""
        settings, losses = self.settings, {}
        if settings.cosine:
            losses["cosine"] = 1 - (unit_BD * target_BT).sum(1).mean()
        if self.mean_CT is not None:
            weight_CD: Any = self.head.weight
            own_BC = unit_BD @ _unit(weight_CD).T
            losses["logits"] = divergence(own_BC, target_BT @ self.mean_CT.T, settings.scale)
        if settings.features:
            pairs = (settings.layers or {}).items()
            parts = [attention_distance(self.features.pop(a), self.taught[b]) for a, b in pairs]
            losses["features"] = torch.stack(parts).mean()
        return losses

    def _network(self, path: str, input: Preprocessing, device: torch.device, precision: str) -> Embed:
        """Return the embeddings of a model file for images that are prepared for the student."""
        settings, where = self.settings, f"teacher.ckpt={path}"
        try:
            chosen = {"name": settings.backbone}
            model = load_model(path, device=str(device), input=settings.input, backbone=chosen)
        except CheckpointError as error:
            said = str(error).replace(f"ckpt={path}", where, 1)
            raise CheckpointError(said.replace("it fits backbone=", "it fits teacher.backbone=")) from error
        model.backbone.requires_grad_(False)
        if settings.features:
            _record(model.backbone, (settings.layers or {}).values(), self.taught, "teacher's network")
        convert = conversion(input, model.input, where)

        @torch.no_grad()
        def embed(image_BCHW: Tensor, batch: Batch) -> Tensor:
            with autocast(device, precision):
                embedding_BT: Tensor = model.backbone(convert(image_BCHW))
            return embedding_BT.float()

        return embed


def divergence(own_BC: Tensor, taught_BC: Tensor, scale: float) -> Tensor:
    """Return the mean Kullback-Leibler divergence of softmax(scale·own) from softmax(scale·taught).

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, with 1/scale as the
    temperature of cosines; without its factor, which only scales the weight.
    """
    own_BC, taught_BC = log_softmax(scale * own_BC, 1), log_softmax(scale * taught_BC, 1)
    return kl_div(own_BC, taught_BC, reduction="batchmean", log_target=True)


def attention_distance(own_BCHW: Tensor, taught_BCHW: Tensor) -> Tensor:
    """Return the mean squared distance of unit attention maps, the means of f² over the channels.

    The larger map is averaged down to the size of the smaller. Zagoruyko and Komodakis 2017, "Paying More
    Attention to Attention", arXiv 1612.03928, equation 2 with p = 2.
    """
    (own_H, own_W), (taught_H, taught_W) = own_BCHW.shape[2:], taught_BCHW.shape[2:]
    shape = min(own_H, taught_H), min(own_W, taught_W)
    own_BP, taught_BP = (
        adaptive_avg_pool2d(f.float().square().mean(1), shape).flatten(1) for f in (own_BCHW, taught_BCHW)
    )
    return (_unit(own_BP) - _unit(taught_BP)).square().sum(1).mean()


def conversion(own: Preprocessing, other: Preprocessing, where: str) -> Callable[[Tensor], Tensor]:
    """Return what turns images prepared as `own` says into those that `other` wants, resized if need be.

    Raises:
        ConfigError: the shapes have another ratio of the sides.
    """
    (height, width), (other_height, other_width) = own.shape, other.shape
    if height * other_width != width * other_height:
        hint = f"takes {other_height}×{other_width} images, which are no scaled {height}×{width}; store its "
        hint += "embeddings with facerec-embed, and give teacher.embeddings"
        raise ConfigError("teacher.ckpt", where.partition("=")[2], hint)

    def convert(image_BCHW: Tensor) -> Tensor:
        if own.shape != other.shape:
            image_BCHW = interpolate(image_BCHW, list(other.shape), mode="bilinear", antialias=True)
        if (own.mean, own.std, own.channels) == (other.mean, other.std, other.channels):
            return image_BCHW
        image_BCHW = image_BCHW * _column(own.std, image_BCHW) + _column(own.mean, image_BCHW)
        if own.channels != other.channels:
            image_BCHW = image_BCHW.flip(1)
        return (image_BCHW - _column(other.mean, image_BCHW)) / _column(other.std, image_BCHW)

    return convert


def require_class_rows(settings: TeacherSettings, head: Head) -> None:
    """Raise `ConfigError` unless a head holds one row for each class in every step."""
    weight: Any = getattr(head, "weight", None)
    whole = weight is not None and weight.ndim == 2 and not head.sharded_parameters
    hint = "needs a head with one row per class, head.sharded=false and head.sample_rate=1"
    require(whole and getattr(head, "sample_rate", 1) == 1, "teacher.logits", settings.logits, hint)


def refuse_teacher(settings: TeacherSettings, trainer: TrainerSettings) -> None:
    """Raise `ConfigError` where features cannot be seen, since their modules are compiled or run twice."""
    for name in ("compile", "checkpoint_activations"):
        hint = f"looks into the backbone's modules; needs trainer.{name}=false"
        seen = not (settings.features and getattr(trainer, name))
        require(seen, "teacher.features", settings.features, hint)


def _stored(path: Path, faces: LabelledImages, device: torch.device) -> Embed:
    """Return rows of a file of `facerec-embed`, looked up by the names of the images."""
    listed = path.with_suffix(".names.csv")
    for file in (path, listed):
        if not file.is_file():
            hint = "must be OUT.npy of facerec-embed, with OUT.names.csv beside it"
            raise MissingDataError(f"teacher.embeddings={path}: there is no {file}; {hint}")
    try:
        stored = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise ConfigError("teacher.embeddings", str(path), "is not a .npy file of numbers") from error
    with listed.open(encoding="utf-8", errors="surrogateescape", newline="") as listing:
        row_of = {line[0]: row for row, line in enumerate(csv.reader(listing), -1) if line}
    names = len(row_of) - 1
    good = stored.ndim == 2 and stored.dtype == np.float32 and len(stored) == names
    hint = f"is {stored.dtype} of shape {stored.shape}, not a float32 row for each of {names:,} names"
    require(good, "teacher.embeddings", str(path), hint)
    named = map(faces.name, range(len(faces)))
    row_N = np.array([row_of.get(name, row_of.get(f"'{name}", -1)) for name in named])  # ' before a formula
    missing = np.flatnonzero(row_N < 0)
    if len(missing):
        hint = f"has no row for {len(missing):,} of {len(faces):,} training images, such as "
        hint += f"{faces.name(int(missing[0]))}; make it of data.root={faces.root}"
        raise ConfigError("teacher.embeddings", str(path), hint)

    def embed(image_BCHW: Tensor, batch: Batch) -> Tensor:
        return torch.from_numpy(np.array(stored[row_N[batch.index_B]])).to(device)

    return embed


def _record(
    network: nn.Module, layers: Iterable[str], into: dict[str, Tensor], whose: str, training: bool = False
) -> None:
    """Keep the outputs of modules at each forward pass (in training mode only), under their names."""
    known = dict(network.named_modules())
    for name in layers:
        if name not in known:
            hint = f"no such module of the {whose}; {nearest(name, [one for one in known if one])}"
            raise ConfigError("teacher.layers", name, hint)

        def keep(module: nn.Module, inputs: Any, feature: Any, name: str = name) -> None:
            if getattr(feature, "ndim", 0) != 4:
                hint = f"this module of the {whose} puts out no feature map (B, C, H, W); take another"
                raise ConfigError("teacher.layers", name, hint)
            if network.training or not training:
                into[name] = feature

        known[name].register_forward_hook(keep)


def _unit(rows_ND: Tensor) -> Tensor:
    return rows_ND * inverse_norm(torch.linalg.vector_norm(rows_ND, dim=1))[:, None]


def _column(numbers: float | list[float], like: Tensor) -> Tensor:
    return torch.as_tensor(numbers, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
