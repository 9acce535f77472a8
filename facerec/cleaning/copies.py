"""Images that are copies of one another, by small gray thumbnails and a digest of their pixels.

Shape suffixes: R embedded images (rows), T numbers of a thumbnail, N images of an identity.
"""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from facerec.evaluation.embedding import Portion

_SIDE: Final = 16
_ALIKE: Final = 0.99  # correlation of thumbnails: a copy in another quality or size has 0.995 and more
_BLOCK: Final = 1024


class Looks:
    """Thumbnails and digests of the images that pass by; call it with each portion."""

    def __init__(self) -> None:
        self._thumbnails: list[npt.NDArray[np.uint8]] = []
        self._digests = array("Q")

    def __call__(self, portion: Portion) -> None:
        thumbnail_PT = np.empty((len(portion.images), _SIDE**2), np.uint8)
        for image_HWC, thumbnail_T in zip(portion.images, thumbnail_PT, strict=True):
            small = Image.fromarray(image_HWC).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
            thumbnail_T[:] = np.asarray(small).reshape(-1)
            digest = hashlib.blake2b(np.ascontiguousarray(image_HWC).data, digest_size=8).digest()
            self._digests.append(int.from_bytes(digest, "little"))
        self._thumbnails.append(thumbnail_PT)

    @functools.cached_property
    def thumbnail_RT(self) -> npt.NDArray[np.uint8]:
        """Gray thumbnails, uint8."""
        return np.concatenate(self._thumbnails)

    @functools.cached_property
    def digest_R(self) -> npt.NDArray[np.uint64]:
        """Digests of the pixels at the model's size."""
        return np.frombuffer(self._digests, np.uint64)


def near_copies(
    row_N: npt.NDArray[np.int64], row_RD: npt.NDArray[np.float32], looks: Looks, least: float
) -> Iterator[tuple[int, int, float, str]]:
    """Yield an earlier row, a later one that is a copy of it, their cosine, and how alike they are.

    Both the embeddings (`least`) and the thumbnails, as they are or one of them mirrored, must agree. Each
    copy comes once.
    """
    copies: set[int] = set()
    for begin in range(0, len(row_N), _BLOCK):
        block = row_N[begin : begin + _BLOCK]
        cosine_BN = np.asarray(row_RD[block]) @ np.asarray(row_RD[row_N[begin:]]).T
        for b, n in np.argwhere(np.triu(cosine_BN >= least, 1)).tolist():
            first, second = int(block[b]), int(row_N[begin + n])
            if first in copies or second in copies:
                continue
            plain, mirrored = _correlations(looks.thumbnail_RT[first], looks.thumbnail_RT[second])
            if max(plain, mirrored) < _ALIKE:
                continue
            copies.add(second)
            if looks.digest_R[first] == looks.digest_R[second]:
                said = "the same image"
            else:
                way = "" if plain >= mirrored else "mirrored, "
                said = f"nearly the same image ({way}correlation {max(plain, mirrored):.4f} of the pixels)"
            yield first, second, float(cosine_BN[b, n]), said


def _correlations(one_T: npt.NDArray[np.uint8], other_T: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Correlation of two thumbnails, and of one of them with the other mirrored; −1 of a flat one."""
    one, other = (part.astype(np.float64) - part.mean() for part in (one_T, other_T))
    norm = np.linalg.norm(one) * np.linalg.norm(other)
    if not norm:
        return (1.0, 1.0) if (one_T == other_T).all() else (-1.0, -1.0)
    mirrored = other.reshape(_SIDE, _SIDE)[:, ::-1].reshape(-1)
    return float(one @ other / norm), float(one @ mirrored / norm)


def same_looks(looks: Looks) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of each group of several images with equal pixels."""
    order_R = np.argsort(looks.digest_R, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(looks.digest_R[order_R]) != 0])
    for rows in np.split(order_R, begins[1:]):
        if len(rows) > 1:
            yield rows
