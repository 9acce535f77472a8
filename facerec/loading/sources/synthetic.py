"""data.kind=synthetic: images made on the spot, of any number and size, for benchmarks and dry runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facerec.errors import counted, require
from facerec.images.decode import Pixels
from facerec.images.images import LabelledImages, PixelImages
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES

_PATTERN = 8  # cells per side of the coarse pattern that makes an identity


class SyntheticImages(PixelImages, LabelledImages):
    """Coarse random patterns, one per identity, under noise that differs from image to image.

    Args:
        identities: how many.
        images: how many images, `identities` or more; image i shows identity i modulo `identities`.
        height, width: of the images, in pixels.
    """

    def __init__(self, identities: int, images: int, height: int = 112, width: int = 112) -> None:
        self.title = "synthetic"
        self.root = Path("memory")
        self.label_N = np.arange(images, dtype=np.int64) % identities
        self.classes = np.arange(identities)
        self._height, self._width = height, width
        self._row_H = np.arange(height) * _PATTERN // height
        self._column_W = np.arange(width) * _PATTERN // width

    def pixels(self, i: int) -> Pixels:
        """Image i, uint8 (height, width, 3)."""
        pattern = _generator(0, int(self.label_N[i])).integers(0, 192, (_PATTERN, _PATTERN, 3), np.uint8)
        noise = np.frombuffer(_generator(1, i).bytes(self._height * self._width * 3), np.uint8)
        coarse_HWC = pattern[self._row_H[:, None], self._column_W]
        return coarse_HWC + (noise >> 2).reshape(self._height, self._width, 3)

    def where(self, i: int) -> str:
        return f"synthetic image {i}"

    def describe(self) -> str:
        return (
            f"{self.title}: {counted(self.num_classes, 'identity')}, "
            f"{counted(len(self), 'image')}, made on the spot"
        )


@SOURCES.register("synthetic")
def open_synthetic(settings: DataSettings) -> LabelledImages:
    """`data.identities` and `data.images` (default: ten per identity) are made, as large as `data.size`."""
    identities = settings.identities or 1000
    images = settings.images or 10 * identities
    require(images >= identities, "data.images", images, f"must be data.identities={identities} or more")
    return SyntheticImages(identities, images, *settings.shape)


def _generator(kind: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(kind, number)))
