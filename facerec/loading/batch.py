"""A batch of images, and making it ready for the model on its device: mirror, augment, normalise.

Shape suffixes: B batch, P part of it, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch

from facerec.device import copied
from facerec.images import buffers
from facerec.images.augment import Augmentation
from facerec.images.device_decode import Undecoded
from facerec.images.preprocessing import Preprocessing
from facerec.randomness import Positions

_PART = 24  # images


class Batch(NamedTuple):
    """The part of a global batch that one rank takes.

    Attributes:
        image_BHWC: uint8 RGB images, not mirrored yet, in pinned memory if the loader was asked to; none
            of them where there is `undecoded`.
        label_B: int64 identities, 0 … C−1.
        mirror_B: bool, the images to be mirrored (on the device, see `prepare`).
        index_B: int64 NumPy array, positions of the images in the set.
        position: samples of the epoch that all ranks have taken when this batch is done; `Loader.batches`
            resumes there.
        sizes: how many images of the global batch each rank takes.
        augment: further changes of the images, made on the device as well, if any.
        undecoded: the images, where the device decodes them; decoding may change `label_B`, `mirror_B` and
            `index_B`.
    """

    image_BHWC: torch.Tensor
    label_B: torch.Tensor
    mirror_B: torch.Tensor
    index_B: Positions
    position: int
    sizes: tuple[int, ...]
    augment: Augmentation | None = None
    undecoded: Undecoded | None = None


def prepare(
    batch: Batch, device: torch.device, input: Preprocessing, fused: Fused | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels of a batch on `device`.

    The bytes cross to the device before they become floats; out of pinned memory they do so while the device
    still works on the batch before (see `copied`). Nothing waits for the device, where it does not decode.
    `fused` is `mirror_and_normalise`, compiled to one kernel; images that are augmented, each by what the
    host has drawn for it, do without.

    Returns:
        Images (B, 3, H, W) float32, channels-last in memory, mirrored and augmented as the batch says, and
        labels (B,) int64.

    Raises:
        DamagedDataError, ConfigError: where the device decodes, see `device_decode`.
    """
    # First of all: an image that is replaced here brings its label and mirror along.
    decoded_BHWC = batch.image_BHWC if batch.undecoded is None else batch.undecoded.decode(device)
    image_BHWC, mirror_B, label_B = copied(device, decoded_BHWC, batch.mirror_B, batch.label_B)
    if fused is not None and batch.augment is None:
        return fused(image_BHWC, mirror_B, input), label_B
    out_BHWC = buffers.empty(image_BHWC.shape, torch.float32, device)
    # On a CPU image by image, in parts that fit into a core's cache: twice through memory otherwise.
    on_cpu = device.type == "cpu" and batch.augment is None
    part = _PART if on_cpu else len(image_BHWC)
    for mirror_P, image_PHWC, out_PHWC in zip(
        mirror_B.split(part), image_BHWC.split(part), out_BHWC.split(part), strict=True
    ):
        if on_cpu:
            _mirror_into(out_PHWC, mirror_P.tolist(), image_PHWC)
            image_PHWC = out_PHWC
        else:
            image_PHWC = mirror_where(mirror_P, image_PHWC)
        if batch.augment is not None:
            image_PHWC = batch.augment(image_PHWC)
        input.normalise(image_PHWC, out_PHWC)
    return out_BHWC.permute(0, 3, 1, 2), label_B


def mirror_and_normalise(
    image_BHWC: torch.Tensor, mirror_B: torch.Tensor, input: Preprocessing
) -> torch.Tensor:
    """As `prepare` does it, without memory or words of its own, so that a compiler makes one kernel of it."""
    image_BHWC = torch.where(mirror_B[:, None, None, None], image_BHWC.flip(2), image_BHWC)
    image_BCHW = input.of_floats(image_BHWC.permute(0, 3, 1, 2).float())
    return image_BCHW.contiguous(memory_format=torch.channels_last)


Fused: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Preprocessing], torch.Tensor]


def _mirror_into(out_PHWC: torch.Tensor, mirror_P: list[bool], image_PHWC: torch.Tensor) -> None:
    """Copy images as floats, those chosen mirrored; one by one, as no device waits for the host here."""
    for out_HWC, mirror, image_HWC in zip(out_PHWC.unbind(), mirror_P, image_PHWC.unbind(), strict=True):
        out_HWC.copy_(image_HWC.flip(1) if mirror else image_HWC)


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
