"""Augmentation of uint8 batches, on the device they are on; every choice a pure function of the sample.

All is off by default: mirroring, which is not done here, is all that the margin papers use. AdaFace (Kim et
al. 2022) changes a fifth of the images in each of three ways: `paste`, `low_resolution` and `color`.

Shape suffixes: B images, H height, W width, C channels, K random numbers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import simplejpeg

from facerec.errors import require
from facerec.randomness import Positions, uniform

if TYPE_CHECKING:
    import torch

_ATTEMPTS: Final = 10  # to draw a rectangle that fits
_DRAWS: Final = {"paste": 3 + 2 * _ATTEMPTS}  # numbers for each image and change, a coin first; usually 5


@dataclass(frozen=True)
class AugmentSettings:
    """Parts of the images, 0 … 1, that are changed in each way, and limits of the changes.

    Args:
        crop: a random square is cut and resized; `crop_side` is its smallest side, as a part of the image's.
        paste: a random rectangle, of `paste_area` of the image or more and sides 3:4 to 4:3, stays at its
            place, on black.
        low_resolution: made small and large again, each by one of OpenCV's five interpolations;
            `low_resolution_side` is the smallest side in between.
        blur: by a Gaussian; `blur_sigma` is its largest deviation in pixels.
        color: brightness, contrast and saturation, in random order, are multiplied by random factors within
            1 ± `color_strength`.
        gray: all colour is taken away.
        jpeg: compressed anew, with `jpeg_quality` or better (on a GPU these images go to the CPU and back).
        cutout: a random square is painted gray; `cutout_side` is its largest side, as a part of the image's.

    Raises:
        ConfigError: for a value out of range.
    """

    crop: float = 0.0
    crop_side: float = 0.7
    paste: float = 0.0
    paste_area: float = 0.2
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
            if key.endswith(("_side", "_area")):
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
            draw_BK = uniform(self.seed, self.epoch, self.index_B, name, _DRAWS.get(name, 5))
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


def _paste(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    height, width = rows, columns = image_CHW.shape[1:]
    for area_draw, ratio_draw in zip(draw_K[2::2], draw_K[3::2], strict=True):
        area = _between(settings.paste_area, 1.0, area_draw) * height * width
        ratio = math.exp(_between(math.log(3 / 4), math.log(4 / 3), ratio_draw))  # width to height
        fitting = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < fitting[0] <= height and 0 < fitting[1] <= width:
            rows, columns = fitting
            break
    top, left = int(draw_K[0] * (height - rows + 1)), int(draw_K[1] * (width - columns + 1))
    part = slice(None), slice(top, top + rows), slice(left, left + columns)
    black_CHW = image_CHW.new_zeros(image_CHW.shape)
    black_CHW[part] = image_CHW[part]
    return black_CHW


def _low_resolution(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    height, width = image_CHW.shape[1:]
    part = _between(settings.low_resolution_side, 1.0, draw_K[0])
    down, up = (INTERPOLATIONS[int(len(INTERPOLATIONS) * draw)] for draw in draw_K[1:3])
    small_CHW = resize(image_CHW, max(1, int(part * height)), max(1, int(part * width)), down)
    return resize(small_CHW, height, width, up)


def _blur(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    sigma = _between(0.1, max(0.1, settings.blur_sigma), draw_K[0])
    kernel = 2 * min(round(3 * sigma), (min(image_CHW.shape[1:]) - 1) // 2) + 1
    return functional.gaussian_blur(image_CHW, [kernel, kernel], [sigma, sigma])


def _color(image_CHW: torch.Tensor, draw_K: list[float], settings: AugmentSettings) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    strength = settings.color_strength
    ways = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    order = list(itertools.permutations(zip(ways, draw_K[:3], strict=True)))[int(6 * draw_K[3])]
    for way, draw in order:
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


INTERPOLATIONS: Final = ("nearest", "linear", "area", "cubic", "lanczos")


def resize(image_CHW: torch.Tensor, height: int, width: int, way: str) -> torch.Tensor:
    """Return a uint8 image in another size, by one of `INTERPOLATIONS` as OpenCV defines them."""
    import torch

    rows, columns = (
        torch.from_numpy(_weights(old, new, way)).to(image_CHW.device)
        for old, new in zip(image_CHW.shape[1:], (height, width), strict=True)
    )
    return (rows @ image_CHW.float() @ columns.T).round_().clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=1024)
def _weights(old: int, new: int, way: str) -> npt.NDArray[np.float32]:
    """Return the weights (new, old) with which the pixels of a line make those of its resized one."""
    scale = 1 / (new / old)  # rounded as OpenCV does
    if way == "area" and new < old:  # the part of each old pixel that a new one covers
        edge_N, old_M = np.arange(new)[:, None] * scale, np.arange(old)
        covered_NM = np.minimum(edge_N + scale, old_M + 1) - np.maximum(edge_N, old_M)
        return (covered_NM.clip(0) / scale).astype(np.float32)
    at_N = np.arange(new) * scale if way in ("nearest", "area") else (np.arange(new) + 0.5) * scale - 0.5
    first_N = np.floor(at_N)
    offset_N = at_N - first_N
    if way == "nearest":
        offset_N[:] = 0
    elif way == "area":  # upwards: linear between pixels as far as a new one reaches into the next
        offset_N = (np.arange(new) + 1 - (first_N + 1) / scale).clip(0) % 1
    taps_T = {"cubic": np.arange(-1, 3), "lanczos": np.arange(-3, 5)}.get(way, np.arange(2))
    weight_NT = _KERNELS.get(way, _linear)(np.abs(offset_N[:, None] - taps_T))
    weight_NT /= weight_NT.sum(1, keepdims=True)
    weight_NM = np.zeros((new, old))
    from_NT = (first_N[:, None] + taps_T).clip(0, old - 1).astype(int)
    np.add.at(weight_NM, (np.arange(new)[:, None], from_NT), weight_NT)
    return weight_NM.astype(np.float32)


def _linear(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (1 - distance).clip(0)


def _cubic(distance: npt.NDArray[np.float64], a: float = -0.75) -> npt.NDArray[np.float64]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return np.where(distance < 1, near, ((distance - 5) * distance + 8) * distance * a - 4 * a)


_KERNELS: Final = {"cubic": _cubic, "lanczos": lambda distance: np.sinc(distance) * np.sinc(distance / 4)}


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


# In this order: what happens to a face before a camera, in it, and behind it.
_ORDER: Final = (_crop, _paste, _cutout, _blur, _low_resolution, _color, _gray, _jpeg)
CHANGES: Final[dict[str, Change]] = {change.__name__.removeprefix("_"): change for change in _ORDER}
