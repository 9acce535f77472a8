"""The images of a pair, also as small JPEG files to embed."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from facerec.images.decode import decode
from facerec.packs.verification import VerificationSet

SIDE = 112
_QUALITY = 80


def pair_pixels(source: VerificationSet, pair: int) -> tuple[np.ndarray, np.ndarray]:
    """The two images of a pair, uint8 RGB."""
    images: list[Any] = [source.images[int(source.index_2N[2 * pair + side])] for side in (0, 1)]
    first, second = (image if getattr(image, "ndim", 1) == 3 else decode(image) for image in images)
    return first, second


def data_uri(pixels: np.ndarray) -> str:
    """An image (uint8 RGB) as a ``data:`` address of a JPEG file, at most `SIDE` high.

    The files themselves are not handed to a browser: it may turn them, show their metadata, or choke on them.
    """
    if max(pixels.shape[:2]) > SIDE:
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorspace="RGB")
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
