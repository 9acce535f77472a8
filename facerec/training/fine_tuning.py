"""Fine-tune: layers that stay as they are, batch norm estimated anew, class rows that start from class means.

Shape suffixes: B batch, C identities, D embedding size, H height, W width (CHW: 3×H×W images).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from facerec import distributed
from facerec.errors import ConfigError, counted, require
from facerec.heads import Head
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import Batch, prepare
from facerec.loading.loader import Loader
from facerec.training import parallel
from facerec.training.optimizers import matches
from facerec.training.settings import StartSettings
from facerec.vectors import unit_rows

log = logging.getLogger(__name__)

Embed = Callable[[Tensor, Batch], Tensor]
"""Returns embeddings (B, D) of the prepared images (B, 3, H, W) of a batch; without gradient."""


def check(backbone: nn.Module, start: StartSettings, init: Any) -> None:
    """Raise `ConfigError` for settings of fine-tuning that this backbone, on any device, cannot have."""
    names = [name for name, _ in backbone.named_parameters()]
    first = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
    for key, patterns in (("freeze", start.freeze), ("lr_scales", start.lr_scales or ())):
        for pattern in patterns:
            fits = any(matches(name, [pattern]) for name in names)
            hint = f"matches no parameter of the backbone; their names begin with {first}"
            require(fits, f"backbone.{key}", pattern, hint)
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())
    estimated, hint = start.estimate_batch_norm, "this backbone has no batch norm; leave it out"
    require(norms or not estimated, "backbone.estimate_batch_norm", estimated, hint)
    if init == "class_means" and not start.pretrained:
        hint = "needs backbone.pretrained: the embeddings of an untrained backbone say nothing of an identity"
        raise ConfigError("head.init", init, hint)


def set_trained(backbone: nn.Module, start: StartSettings, trainable: frozenset[str]) -> bool:
    """Let those parameters named `trainable` be trained that `start` leaves; return True for a change."""
    before = [parameter.requires_grad for parameter in backbone.parameters()]
    for name, parameter in backbone.named_parameters():
        trained = name in trainable and not (start.frozen or matches(name, start.freeze))
        parameter.requires_grad_(trained)
        parameter.grad = parameter.grad if trained else None
    return before != [parameter.requires_grad for parameter in backbone.parameters()]


def set_mode(backbone: nn.Module, start: StartSettings) -> None:
    """Put the backbone into training mode, as far as `start` lets it and its batch norms be trained."""
    backbone.train(not start.frozen)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            fixed = start.freeze_batch_norm or matches(f"{name}.weight", start.freeze)
            module.train(module.training and not fixed)


def prepare_start(
    start: StartSettings,
    backbone: nn.Module,
    head: Head,
    loader: Loader,
    input: Preprocessing,
    device: torch.device,
) -> None:
    """Before the first step, estimate batch norm and set class rows as the settings say; all ranks call this.

    The backbone is left in eval mode.
    """
    if start.estimate_batch_norm:
        estimate_batch_norm(backbone, loader, input, device, start.estimate_batch_norm)
    if getattr(head, "init", None) == "class_means":
        backbone.eval()
        means_CD = class_means(lambda image_BCHW, batch: backbone(image_BCHW), loader, input, device)
        start_from(head, means_CD)


def estimate_batch_norm(
    backbone: nn.Module, loader: Loader, input: Preprocessing, device: torch.device, batches: int
) -> None:
    """Replace the running statistics by the means over some `batches`; with several ranks those of rank 0.

    The plain mean of all batches' statistics (`torch.optim.swa_utils.update_bn`), not a moving one. Li et al.
    2016, "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv 1603.04779.
    """
    images = (image_BCHW for image_BCHW, _ in _prepared(loader, input, device, batches))
    update_bn(images, backbone)
    parallel.broadcast_buffers(backbone)
    taken = min(batches, loader.batches_per_epoch())
    log.info("backbone   batch norm: running statistics estimated anew over %d batches", taken)


@torch.no_grad()
def class_means(embed: Embed, loader: Loader, input: Preprocessing, device: torch.device) -> Tensor:
    """Return the mean of each identity's unit embeddings, scaled to length 1, (C, D) on `device`.

    One epoch of the loader, over all ranks, without augmentation other than mirroring. Rows of identities of
    which it takes no image are 0.
    """
    sum_CD = torch.zeros(0)
    for image_BCHW, batch in _prepared(loader, input, device):
        unit_BD = unit_rows(embed(image_BCHW, batch).float())
        if not len(sum_CD):
            sum_CD = unit_BD.new_zeros(loader.faces.num_classes, unit_BD.shape[1])
        sum_CD.index_add_(0, batch.label_B.to(device), unit_BD)
    return unit_rows(distributed.all_reduce_sum(sum_CD))


@torch.no_grad()
def start_from(head: Head, mean_CD: Tensor) -> None:
    """Set the class rows that `head` holds to `mean_CD`, where it is not 0; of sub-centres, the first."""
    weight: Any = head.weight
    mean_RD = mean_CD[head.shard.start : head.shard.stop].to(weight)
    known_R = mean_RD.any(1)
    (weight if weight.ndim == 2 else weight[:, 0])[known_R] = mean_RD[known_R]
    rows = counted(int(known_R.sum()), "class row")
    log.info("head       %s start from the means of their embeddings", rows)


def _prepared(
    loader: Loader, input: Preprocessing, device: torch.device, most: int | None = None
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the first batches of this rank, at `most` so many, as the backbone takes them."""
    batches = loader.batches(0)
    with contextlib.closing(batches):  # type: ignore[type-var]
        for batch in itertools.islice(batches, most):
            plain = batch._replace(augment=None)
            yield prepare(plain, device, input)[0], plain
