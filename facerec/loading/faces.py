"""What every source of training images offers: labels 0…C−1, and the images themselves by position."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class FaceSet(ABC):
    """N images of C identities, reached by position 0 … N−1.

    A subclass of `EncodedFaces` or `PixelFaces`, never of this class alone. Reading is safe from threads and
    forked processes at once, and a face set can be pickled (without the images) into a spawned one.

    Attributes:
        name: short name for logs and errors, e.g. ``ms1mv2``.
        root: the file or folder the images come from.
        label_N: int64 labels in 0 … C−1, one an image; read-only and often memory-mapped.
        classes: C original labels or names: ``classes[label_N[i]]`` names image i's identity.
            It is kept in checkpoints.
    """

    name: str
    root: Path
    label_N: np.ndarray
    classes: Sequence[str] | np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def num_classes(self) -> int:
        """C, the number of identities."""
        return len(self.classes)

    @abstractmethod
    def where(self, i: int) -> str:
        """The place of image i for an error message: ``key 17 at offset 90112 of /data/train.rec``."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log: identities, images, and where they come from."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of which images there are, in what order and of whom: a resumed run must meet the same.

        No image is read for it. It does not say where they are, so that they may be moved.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in self.contents():
            digest.update(
                part.data
                if isinstance(part, np.ndarray)
                else "\0".join(part).encode("utf-8", "surrogateescape")
            )
        return digest.hexdigest()

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        """What `fingerprint` is made from: contiguous arrays, and texts."""
        return [np.ascontiguousarray(self.label_N), self.classes]

    def prefetch(self, positions: Sequence[int]) -> None:  # noqa: B027  (a hint: nothing to do is a good answer)
        """Hint that these images will be read soon; a source on a disk starts reading without waiting."""


class EncodedFaces(FaceSet):
    """A face set that hands out encoded images, to be decoded by the reader."""

    @abstractmethod
    def encoded(self, i: int) -> bytes | memoryview:
        """The bytes of image i's JPEG or PNG file; a memoryview may lie in a read-only memory map.

        Raises:
            DamagedDataError: where the record is damaged; the message says `where`.
        """


class PixelFaces(FaceSet):
    """A face set that makes or holds images already decoded (synthetic ones)."""

    @abstractmethod
    def pixels(self, i: int) -> np.ndarray:
        """Image i as uint8 RGB, shape (height, width, 3)."""
