"""Make a loaded batch ready for the model, on the model's device: mirror, augment, normalise, channels-last.

Shape suffixes: B batch, P part of it, H height, W width, C channels.
"""

from __future__ import annotations

import torch

from facerec.images import buffers
from facerec.images.preprocessing import Preprocessing
from facerec.loading.loader import Batch

_PART = 24  # images


def prepare(batch: Batch, device: torch.device, input: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels of a batch on `device`.

    The bytes cross to the device before they become floats; out of pinned memory they do so while the device
    still works on the batch before. Nothing here waits for the device, where it does not decode.

    Returns:
        Images (B, 3, H, W) float32, channels-last in memory, mirrored and augmented as the batch says, and
        labels (B,) int64.

    Raises:
        DamagedDataError, ConfigError: where the device decodes, see `device_decode`.
    """
    if batch.undecoded is None:
        image_BHWC = batch.image_BHWC.to(device, non_blocking=True)
    else:  # first of all: an image replaced here brings its label and mirror along
        image_BHWC = batch.undecoded.decode(device)
    mirror_B = batch.mirror_B.to(device, non_blocking=True)
    label_B = batch.label_B.to(device, non_blocking=True)
    out_BHWC = buffers.empty(image_BHWC.shape, torch.float32, device)
    # On a CPU in parts that fit into a core's cache: twice through memory otherwise.
    part = _PART if device.type == "cpu" and batch.augment is None else len(image_BHWC)
    for mirror_P, image_PHWC, out_PHWC in zip(
        mirror_B.split(part), image_BHWC.split(part), out_BHWC.split(part), strict=True
    ):
        image_PHWC = mirror_where(mirror_P, image_PHWC)
        if batch.augment is not None:
            image_PHWC = batch.augment(image_PHWC)
        input.normalise(image_PHWC, out_PHWC)
    return out_BHWC.permute(0, 3, 1, 2), label_B


def mirror_where(mirror_B: torch.Tensor, image_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, H, W, C), those chosen by the bool `mirror_B` mirrored left to right."""
    shape = image_BHWC.shape
    # Chosen as words of 8 bytes, which takes a sixth of the time on a CPU; every usual size is a multiple.
    word = torch.int64 if image_BHWC[0].numel() % 8 == 0 else torch.uint8
    plain_BX = image_BHWC.reshape(len(image_BHWC), -1).view(word)
    mirrored_BX = image_BHWC.flip(2).view(len(image_BHWC), -1).view(word)
    out_BHWC = buffers.empty(shape, torch.uint8, image_BHWC.device)
    torch.where(mirror_B[:, None], mirrored_BX, plain_BX, out=out_BHWC.view(len(out_BHWC), -1).view(word))
    return out_BHWC
