"""Wrong labels on purpose, for experiments on robustness: some images get another identity's label.

Shape suffixes: N images, M of them changed, C identities, P pixels of a thumbnail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, counted
from facerec.images.decode import MAX_PIXELS, Encoded, Pixels
from facerec.images.images import LabelledImages
from facerec.randomness import random_words
from facerec.vectors import unit_rows

NoiseKind = Literal["uniform", "confusable"]
Labels = npt.NDArray[np.int64]

_LOOKALIKES: Final = 5  # identities one may be taken for
_SEEN: Final = 4  # images of an identity that its looks are judged by
_SIDE: Final = 16


class NoisyLabels(LabelledImages):
    """Images of which some labels are wrong; `clean_label_N` are those as they were."""

    def __init__(self, faces: LabelledImages, label_N: Labels, kind: str) -> None:
        self.faces, self.kind = faces, kind
        self.title, self.root, self.classes = faces.title, faces.root, faces.classes
        self.mixture = faces.mixture
        self.clean_label_N, self.label_N = faces.label_N, label_N
        label_N.flags.writeable = False

    def encoded(self, i: int) -> Encoded:
        return self.faces.encoded(i)

    def decode_into(self, i: int, out_HWC: Pixels, max_pixels: int = MAX_PIXELS) -> None:
        self.faces.decode_into(i, out_HWC, max_pixels)

    def where(self, i: int) -> str:
        return self.faces.where(i)

    def describe(self) -> str:
        wrong = int((self.label_N != self.clean_label_N).sum())
        percent = 100 * wrong / len(self)
        return f"{self.faces.describe()}; {counted(wrong, 'label')} ({percent:.3g} %) made wrong, {self.kind}"

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        return [*self.faces.contents(), self.label_N]

    def prefetch(self, positions: Sequence[int]) -> None:
        self.faces.prefetch(positions)


def with_label_noise(
    faces: LabelledImages, fraction: float, kind: NoiseKind = "uniform", seed: int = 0
) -> LabelledImages:
    """`faces` with wrong labels on round(fraction·N) of its images, a pure function of the seed.

    Args:
        faces: images of two identities or more.
        fraction: in [0, 1).
        kind: ``uniform``: any other identity. ``confusable``: one of the five that look most alike, by the
            mean of small gray images (a few of each identity are decoded for it).
    """
    if fraction == 0:
        return faces
    number_N = np.arange(len(faces), dtype=np.int64)
    lot_N = random_words(seed, 0, number_N, "wrong label")
    changed_M = np.argsort(lot_N, kind="stable")[: round(fraction * len(faces))]
    word_M = random_words(seed, 0, changed_M, "which label")
    label_N = np.array(faces.label_N, dtype=np.int64)
    if kind == "uniform":
        step_M = (word_M % np.uint64(faces.num_classes - 1)).astype(np.int64)
        label_N[changed_M] = (label_N[changed_M] + 1 + step_M) % faces.num_classes
    else:
        alike_CK = lookalikes(faces)
        choice_M = (word_M % np.uint64(alike_CK.shape[1])).astype(np.int64)
        label_N[changed_M] = alike_CK[label_N[changed_M], choice_M]
    return NoisyLabels(faces, label_N, kind)


def lookalikes(faces: LabelledImages, count: int = _LOOKALIKES) -> Labels:
    """For each identity the `count` others (fewer if there are fewer) with the nearest mean images."""
    order_N = np.argsort(faces.label_N, kind="stable")
    sorted_N = np.asarray(faces.label_N)[order_N]
    mean_CP = np.zeros((faces.num_classes, _SIDE * _SIDE), np.float32)
    image_HWC = np.empty((_SIDE, _SIDE, 3), np.uint8)
    edges = np.searchsorted(sorted_N, np.arange(faces.num_classes + 1))
    for identity, (begin, end) in enumerate(pairwise(edges.tolist())):
        seen = order_N[begin:end][:: max(1, (end - begin) // _SEEN)][:_SEEN]
        for i in seen.tolist():
            with contextlib.suppress(DamagedDataError):  # the loader will say so, or skip it
                faces.decode_into(i, image_HWC)
                mean_CP[identity] += image_HWC.astype(np.float32).mean(2).ravel()
    mean_CP = unit_rows(mean_CP - mean_CP.mean(1, keepdims=True))
    count = min(count, faces.num_classes - 1)
    nearest_CK = np.empty((faces.num_classes, count), np.int64)
    for begin in range(0, faces.num_classes, 1024):
        likeness = mean_CP[begin : begin + 1024] @ mean_CP.T
        likeness[np.arange(len(likeness)), begin + np.arange(len(likeness))] = -np.inf
        best = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        nearest_CK[begin : begin + 1024] = np.sort(best, axis=1)
    return nearest_CK
