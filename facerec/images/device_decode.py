"""Decode the JPEG images of a batch on the training device by torchvision (nvJPEG on CUDA).

For machines whose GPU waits for the CPU's decoding (``data.decoder=device``): the loader's threads only
collect files, and decode what a device's decoder may not know. Never run on CUDA: no GPU was at hand; a CPU
goes through the same lines, on one core. The decoders may differ by a gray level or two, and a device's may
accept damage inside a JPEG; `facerec-data verify` finds it.

Shape suffixes: B batch, H height, W width, C colour channels (RGB).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import simplejpeg
import torch

from facerec.errors import ConfigError
from facerec.images.decode import Encoded, Pixels, ordinary_size

_COLORS: Final = ("YCbCr", "Gray", "RGB")
_END: Final = b"\xff\xd9"
_LONGEST: Final = 4096  # pixels; a long narrow image would grow when it is resized to cover the wanted size


class Undecoded:
    """The images of a batch, most of them still files.

    Args:
        images: for each sample the bytes of a JPEG that `for_device` let through, uint8 (n,), or RGB
            pixels, uint8 (H, W, 3); on the CPU.
        size: (H, W).
        retry: called with the slot of a sample whose file the device does not decode; returns its pixels, or
            those of an image put into its slot; raises DamagedDataError.
    """

    def __init__(
        self, images: list[torch.Tensor], size: tuple[int, int], retry: Callable[[int], Pixels]
    ) -> None:
        self.images = images
        self.size = size
        self.retry = retry

    def decode(self, device: torch.device) -> torch.Tensor:
        """The images on `device`, uint8 (B, H, W, 3); those of another size are resized to cover it and
        cropped at the centre.

        Labels and mirrors of the batch may change by this, where `retry` replaces an image.

        Raises:
            DamagedDataError: from `retry`.
            ConfigError: torchvision decodes nothing on this device.
        """
        files = [slot for slot, image in enumerate(self.images) if image.ndim == 1]
        decoded = dict(zip(files, self._decode(files, device), strict=True))
        image_BHWC = [
            self._fitted(decoded[slot]) if slot in decoded else image.to(device, non_blocking=True)
            for slot, image in enumerate(self.images)
        ]
        return torch.stack(image_BHWC)

    def _decode(self, files: list[int], device: torch.device) -> list[torch.Tensor]:
        """Files as (3, height, width) on `device`: all at once, or one by one where that fails."""
        if not files:
            return []
        try:
            return _torchvision([self.images[slot] for slot in files], device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
        decoded = []
        failed = 0
        for slot in files:
            try:
                decoded += _torchvision([self.images[slot]], device)
            except RuntimeError:
                failed += 1
                pixels_HWC = self.retry(slot)
                decoded.append(torch.from_numpy(pixels_HWC).permute(2, 0, 1).to(device))
        if failed == len(files) > 1:
            raise ConfigError("data.decoder", "device", f"does not work on {device} ({reason}); take threads")
        return decoded

    def _fitted(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """One image as (H, W, 3), resized on its device where need be."""
        height, width = self.size
        if image_CHW.shape[1:] != (height, width):
            from torchvision.transforms.v2 import functional

            scale = max(height / image_CHW.shape[1], width / image_CHW.shape[2])
            sides = zip(self.size, image_CHW.shape[1:], strict=True)
            cover = [max(wanted, round(scale * side)) for wanted, side in sides]
            bicubic = functional.InterpolationMode.BICUBIC
            image_CHW = functional.resize(image_CHW, cover, bicubic, antialias=True)
            image_CHW = functional.center_crop(image_CHW, [height, width])
        return image_CHW.permute(1, 2, 0)


def for_device(encoded: Encoded) -> torch.Tensor | None:
    """A copy of an ordinary JPEG's bytes, uint8 (n,), for `Undecoded`; None for anything else."""
    view = memoryview(encoded)
    if view[-2:] != _END or ordinary_size(view) is None:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(view)
    except ValueError:
        return None
    if colors not in _COLORS or max(height, width) > min(_LONGEST, 4 * min(height, width)):
        return None
    return torch.from_numpy(np.array(view))


def _torchvision(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Decode by torchvision; only this function knows of devices."""
    from torchvision.io import ImageReadMode, decode_jpeg

    where = device if device.type == "cuda" else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the successor, torchcodec, is not needed yet
        decoded: list[torch.Tensor] = decode_jpeg(files, ImageReadMode.RGB, where)
    return [image_CHW.to(device) for image_CHW in decoded]
