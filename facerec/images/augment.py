"""Augmentation of uint8 batches, on the device they are on; every choice a pure function of the sample.

All is off by default: mirroring, which is not done here, is all that the margin papers use. AdaFace (Kim et
al. 2022) crops, lowers the resolution and shifts colours, each in a fifth of the images.

Shape suffixes: B images, H height, W width, C channels, K random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg

from facerec.errors import require
from facerec.randomness import Positions, uniform

if TYPE_CHECKING:
    import torch

_DRAWS: Final = 5  # a coin and up to four numbers for each image and change


@dataclass(frozen=True)
class AugmentSettings:
    """Parts of the images, 0 … 1, that are changed in each way, and limits of the changes.

    Args:
        crop: a random square is cut and resized; `crop_side` is its smallest side, as a part of the image's.
        low_resolution: made small and large again; `low_resolution_side` is the smallest side in between.
        blur: by a Gaussian; `blur_sigma` is its largest deviation in pixels.
        color: brightness, contrast and saturation are multiplied by random factors within 1 ±
            `color_strength`.
        gray: all colour is taken away.
        jpeg: compressed anew, with `jpeg_quality` or better (on a GPU these images go to the CPU and back).
        cutout: a random square is painted gray; `cutout_side` is its largest side, as a part of the image's.

    Raises:
        ConfigError: for a value out of range.
    """

    crop: float = 0.0
    crop_side: float = 0.7
    low_resolution: float = 0.0
    low_resolution_side: float = 0.2
    blur: float = 0.0
    blur_sigma: float = 2.0
    color: float = 0.0
    color_strength: float = 0.5
    gray: float = 0.0
    jpeg: float = 0.0
    jpeg_quality: int = 20
    cutout: float = 0.0
    cutout_side: float = 0.5

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if key.endswith("_side"):
                good, hint = 0 < value <= 1, "must be greater than 0, and 1 at most"
            elif key == "blur_sigma":
                good, hint = 0 < value <= 20, "must be 0 to 20 pixels"
            elif key == "jpeg_quality":
                good, hint = 1 <= value <= 100, "must be 1 to 100"
            else:
                good, hint = 0 <= value <= 1, "must be 0 to 1"
            require(good, f"data.augment.{key}", value, hint)

    @property
    def active(self) -> bool:
        """True where any image is changed."""
        return any(getattr(self, key) for key in CHANGES)


@dataclass(frozen=True)
class Augmentation:
    """The changes of one batch; random numbers follow from seed, epoch and sample alone."""

    settings: AugmentSettings
    seed: int
    epoch: int
    index_B: Positions

    def __call__(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Change uint8 images (B, H, W, 3) in place, and return them."""
        for name, change in CHANGES.items():
            part: float = getattr(self.settings, name)
            if not part:
                continue
            draw_BK = uniform(self.seed, self.epoch, self.index_B, name, _DRAWS)
            for row in np.flatnonzero(draw_BK[:, 0] < part).tolist():
                changed_CHW = change(
                    image_BHWC[row].permute(2, 0, 1), draw_BK[row, 1:].tolist(), self.settings
                )
                image_BHWC[row] = changed_CHW.permute(1, 2, 0)
        return image_BHWC


Change = Callable[["torch.Tensor", list[float], AugmentSettings], "torch.Tensor"]


def _crop(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    height, width = image_CHW.shape[1:]
    part = _between(settings.crop_side, 1.0, draw_K[0])
    rows, columns = max(1, round(part * height)), max(1, round(part * width))
    top, left = int(draw_K[1] * (height - rows + 1)), int(draw_K[2] * (width - columns + 1))
    return functional.resized_crop(image_CHW, top, left, rows, columns, [height, width])


def _low_resolution(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    height, width = image_CHW.shape[1:]
    part = _between(settings.low_resolution_side, 1.0, draw_K[0])
    ways = (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    down, up = ways[int(3 * draw_K[1])], ways[int(3 * draw_K[2])]
    small = [max(1, round(part * height)), max(1, round(part * width))]
    return functional.resize(functional.resize(image_CHW, small, down), [height, width], up)


def _blur(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    sigma = _between(0.1, max(0.1, settings.blur_sigma), draw_K[0])
    kernel = 2 * min(round(3 * sigma), (min(image_CHW.shape[1:]) - 1) // 2) + 1
    return functional.gaussian_blur(image_CHW, [kernel, kernel], [sigma, sigma])


def _color(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    strength = settings.color_strength
    ways = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for way, draw in zip(ways, draw_K, strict=False):
        image_CHW = way(image_CHW, _between(1 - strength, 1 + strength, draw))
    return image_CHW


def _gray(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return functional.rgb_to_grayscale(image_CHW, num_output_channels=3)


def _jpeg(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    import torch

    quality = round(_between(settings.jpeg_quality, 100, draw_K[0]))
    pixels_HWC = image_CHW.permute(1, 2, 0).contiguous().cpu().numpy()
    encoded = simplejpeg.encode_jpeg(pixels_HWC, quality, "RGB", "420")
    again_HWC = torch.from_numpy(simplejpeg.decode_jpeg(encoded, "RGB"))
    return again_HWC.permute(2, 0, 1).to(image_CHW.device)


def _cutout(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    height, width = image_CHW.shape[1:]
    side = max(
        1, round(_between(0.1 * settings.cutout_side, settings.cutout_side, draw_K[0]) * min(height, width))
    )
    top, left = int(draw_K[1] * (height - side + 1)), int(draw_K[2] * (width - side + 1))
    image_CHW = image_CHW.clone()
    image_CHW[:, top : top + side, left : left + side] = 128
    return image_CHW


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


# In this order: what happens to a face before a camera, in it, and behind it.
CHANGES: Final[dict[str, Change]] = {
    "crop": _crop,
    "cutout": _cutout,
    "blur": _blur,
    "low_resolution": _low_resolution,
    "color": _color,
    "gray": _gray,
    "jpeg": _jpeg,
}
