"""A set of images, wherever they lie: reached by position, encoded or decoded; training sets add labels.

Shape suffixes: N images, C identities, H height, W width, C channels (RGB).
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError
from facerec.images.decode import MAX_PIXELS, Encoded, Pixels, decode_into, fit_into, ppm


class Images(ABC):
    """N images, reached by position 0 … N−1.

    Reading is safe from threads and forked processes at once, and a set can be pickled (without the images)
    into a spawned one.

    Attributes:
        first_N: int64; the first position of each image, where images may repeat; None: all differ.
        group: the number of neighbours that are of no use alone: 2 where they are pairs.
    """

    first_N: npt.NDArray[np.int64] | None = None
    group: int = 1

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of images."""

    @abstractmethod
    def encoded(self, i: int) -> Encoded:
        """The bytes of image i's file; a memoryview may lie in a read-only memory map.

        Raises:
            DamagedDataError, MissingDataError: it cannot be read; the message says `where`.
        """

    def decode_into(self, i: int, out_HWC: Pixels, max_pixels: int = MAX_PIXELS) -> None:
        """Decode image i into `out_HWC`, see `facerec.images.decode.decode_into`; errors say `where`."""
        encoded = self.encoded(i)
        try:
            decode_into(encoded, out_HWC, max_pixels)
        except DamagedDataError as error:
            raise DamagedDataError(f"{self.where(i)}: {error}") from error

    @abstractmethod
    def where(self, i: int) -> str:
        """The place of image i for an error message: ``key 17 at offset 90112 of /data/train.rec``."""

    def name(self, i: int) -> str:
        """The name of image i, unique in most sets."""
        return self.where(i)

    def label(self, i: int) -> str:
        """The identity of image i, as far as it is known; else empty."""
        return ""

    def sample(self, count: int) -> Iterator[Encoded]:
        """Yield some encoded images, evenly spread; nothing at all, ``b""``, for a damaged one."""
        for i in np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist():
            try:
                yield self.encoded(i)
            except DamagedDataError:
                yield b""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""

    def prefetch(self, positions: Sequence[int]) -> None:  # noqa: B027  (a hint: nothing to do is a good answer)
        """Hint that these images will be read soon; a set on a disk starts reading without waiting."""


class PixelImages(Images):
    """Images that are made as pixels."""

    @abstractmethod
    def pixels(self, i: int) -> Pixels:
        """Image i, uint8 RGB (H, W, C)."""

    def encoded(self, i: int) -> bytes:
        return ppm(self.pixels(i))

    def decode_into(self, i: int, out_HWC: Pixels, max_pixels: int = MAX_PIXELS) -> None:
        fit_into(self.pixels(i), out_HWC)


class LabelledImages(Images):
    """N images of C identities, to train on.

    Attributes:
        title: short name of the set for logs and errors, e.g. ``ms1mv2``.
        root: the file or folder the images come from.
        label_N: int64 labels in 0 … C−1; read-only and often memory-mapped.
        classes: C original labels or names: ``classes[label_N[i]]`` names image i's identity.
            It is kept in checkpoints.
        mixture: where sources are mixed by weights, the number of images and the weight of each; their images
            follow each other.
    """

    mixture: tuple[Sequence[int], Sequence[float]] | None = None
    title: str
    root: Path
    label_N: npt.NDArray[np.int64]
    classes: Sequence[str] | npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def num_classes(self) -> int:
        """C, the number of identities."""
        return len(self.classes)

    def label(self, i: int) -> str:
        return str(self.classes[int(self.label_N[i])])

    def first_images(self) -> npt.NDArray[np.int64]:
        """The first image of each identity, (C,); 0 for one without images."""
        first_C = np.zeros(self.num_classes, np.int64)
        label_N = np.asarray(self.label_N)
        first_C[label_N[::-1]] = np.arange(len(label_N) - 1, -1, -1)
        return first_C

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of which images there are, in what order and of whom: a resumed run must meet the same.

        No image is read for it. It does not say where they are, so that they may be moved.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in self.contents():
            if not isinstance(part, np.ndarray):
                part = np.frombuffer("\0".join(part).encode("utf-8", "surrogateescape"), np.uint8)
            digest.update(part.data)
        return digest.hexdigest()

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        """Contiguous arrays and texts that `fingerprint` is made from."""
        return [np.ascontiguousarray(self.label_N), self.classes]
