"""The hardest pairs of a verification result, and their images as small JPEG files to embed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from facerec.evaluation.verify import VerificationResult
from facerec.images.decode import decode
from facerec.packs.verification import VerificationSet

SIDE = 112
_QUALITY = 80


@dataclass(frozen=True)
class HardPair:
    """A pair, the distance of its images, and True where it was judged wrong."""

    pair: int
    genuine: bool
    distance: float
    wrong: bool
    identities: tuple[str, str] | None

    @property
    def kind(self) -> str:
        """``genuine`` or ``impostor``."""
        return "genuine" if self.genuine else "impostor"


def hardest_pairs(result: VerificationResult, count: int = 8) -> tuple[list[HardPair], list[HardPair]]:
    """The genuine pairs farthest apart and the impostor pairs nearest to each other, worst first."""
    distance_N = np.asarray(result.distance_N, np.float64)
    wrong = {*result.wrong_genuine.tolist(), *result.wrong_impostor.tolist()}
    names = getattr(result.source, "identity_2N", None)

    def pairs(genuine: bool) -> list[HardPair]:
        chosen = np.flatnonzero(result.issame_N == genuine)
        key = -distance_N[chosen] if genuine else distance_N[chosen]
        found = []
        for pair in chosen[np.argsort(key, kind="stable")[:count]].tolist():
            identities = None if names is None else (str(names[2 * pair]), str(names[2 * pair + 1]))
            found.append(HardPair(pair, genuine, float(distance_N[pair]), pair in wrong, identities))
        return found

    return pairs(True), pairs(False)


def pair_pixels(source: VerificationSet, pair: int) -> tuple[np.ndarray, np.ndarray]:
    """The two images of a pair, uint8 RGB."""
    images: list[Any] = [source.images[int(source.index_2N[2 * pair + side])] for side in (0, 1)]
    first, second = (image if getattr(image, "ndim", 1) == 3 else decode(image) for image in images)
    return first, second


def data_uris(source: VerificationSet, pair: int) -> list[str]:
    """Both images of a pair as ``data:`` addresses of JPEG files of their pixels, at most `SIDE` high.

    The files themselves are not handed to a browser: it may turn them, show their metadata, or choke on them.
    """
    return [_data_uri(pixels) for pixels in pair_pixels(source, pair)]


def _data_uri(pixels: np.ndarray) -> str:
    if max(pixels.shape[:2]) > SIDE:
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorspace="RGB")
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
