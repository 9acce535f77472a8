"""Templates: many images of an identity pooled into one vector, and pairs of templates compared by cosine.

Pooling is a weighted sum, so it streams: an image's embedding is added to its template and forgotten. Pairs
are compared in blocks, by matrix products where the list is dense (the 15.7 million pairs of IJB-C are a
quarter of all 3,531 × 19,593), else pair by pair.

Shape suffixes: R rows of a face list (an image in a template), P images, T templates, N pairs, D
embedding size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import DamagedDataError
from facerec.evaluation.statistics.separation import Floats, Ints
from facerec.vectors import unit_rows

_BLOCK = 1 << 22  # scores computed at once (16 MB)
_DENSE = 100  # a matrix product of so many times the wanted scores is still quicker than gathering rows


@dataclass(frozen=True)
class FaceList:
    """Template and medium of each image, one row per image and template.

    Attributes:
        image_R: number of the image, 0 … P − 1.
        template_R: number of the template, 0 … T − 1; each has at least one row.
        medium_R: any id of the medium (photograph or video) within the template.
    """

    image_R: Ints
    template_R: Ints
    medium_R: Ints

    @property
    def templates(self) -> int:
        """T, the number of templates."""
        return int(self.template_R.max(initial=-1)) + 1

    def weight_R(self) -> Floats:
        """Weight of each row in the sum of its template: 1 / (rows of its medium in its template)."""
        media_R2 = np.stack([self.template_R, self.medium_R], axis=1)
        _, group_R, rows = np.unique(media_R2, axis=0, return_inverse=True, return_counts=True)
        return 1 / rows[group_R.reshape(-1)]


class TemplatePool:
    """Normalised sum over media of the mean within a medium, of embeddings that come in portions.

    Args:
        faces: which image belongs where.
        weight_P: another weight of each image (the detector's score), 0 or more; None: all equal.
    """

    def __init__(self, faces: FaceList, weight_P: Floats | None = None) -> None:
        weight_R = faces.weight_R()
        if weight_P is not None:
            weight_R = weight_R * weight_P[faces.image_R]
        order = np.argsort(faces.image_R, kind="stable")
        self._image_R, self._template_R = faces.image_R[order], faces.template_R[order]
        self._weight_R = weight_R[order]
        self._templates = faces.templates
        self._images = 0
        self._sum_TD: Floats | None = None

    def add(self, embedding_BD: Floats) -> None:
        """Add the embeddings of the next B images."""
        if self._sum_TD is None:
            self._sum_TD = np.zeros((self._templates, embedding_BD.shape[1]), np.float32)
        first, self._images = self._images, self._images + len(embedding_BD)
        rows = slice(*np.searchsorted(self._image_R, [first, self._images]).tolist())
        weighted = embedding_BD[self._image_R[rows] - first] * self._weight_R[rows, None].astype(np.float32)
        torch.from_numpy(self._sum_TD).index_add_(
            0, torch.from_numpy(self._template_R[rows].astype(np.int64)), torch.from_numpy(weighted)
        )

    def unit_TD(self) -> Floats:
        """The templates as unit vectors, float32 (T, D); zero ones stay zero.

        Raises:
            NonFiniteError: naming the first template that is not finite.
        """
        if self._sum_TD is None:
            raise DamagedDataError("no embeddings were added to the templates")
        return unit_rows(self._sum_TD, "template")


def pair_cosines(unit_TD: Floats, first_N: Ints, second_N: Ints) -> npt.NDArray[np.float32]:
    """Cosine of each listed pair of rows of `unit_TD`, float32 (N,); about 100 MB are used besides."""
    template_TD = torch.from_numpy(np.ascontiguousarray(unit_TD, np.float32))
    cosine_N = np.empty(len(first_N), np.float32)
    left, row_N = _renumbered(first_N, len(unit_TD))
    right, column_N = _renumbered(second_N, len(unit_TD))
    if len(left) * len(right) <= _DENSE * len(first_N):
        right_RD = template_TD[torch.from_numpy(right)]
        for rows, pairs in _by_row(row_N, len(left), max(1, _BLOCK // len(right))):
            cosine = (template_TD[torch.from_numpy(left[rows])] @ right_RD.T).numpy()
            cosine_N[pairs] = cosine[row_N[pairs] - rows.start, column_N[pairs]]
        return cosine_N
    step = max(1, _BLOCK // unit_TD.shape[1])
    for start in range(0, len(first_N), step):
        block = slice(start, start + step)
        one, other = (
            template_TD[torch.from_numpy(index[block].astype(np.int64))] for index in (first_N, second_N)
        )
        cosine_N[block] = torch.linalg.vecdot(one, other).numpy()
    return cosine_N


def _renumbered(index_N: Ints, count: int) -> tuple[Ints, npt.NDArray[np.int32]]:
    """The numbers below `count` that occur, and the place of each entry among them."""
    used = np.zeros(count, bool)
    used[index_N] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - np.int32(1))[index_N]


def _by_row(row_N: Ints, rows: int, step: int) -> Iterator[tuple[slice, Ints | slice]]:
    """Blocks of `step` rows, and which pairs are in each."""
    if (row_N[1:] >= row_N[:-1]).all():  # as published lists are
        bounds = np.searchsorted(row_N, np.arange(0, rows + step, step))
        for number, start in enumerate(range(0, rows, step)):
            yield slice(start, start + step), slice(int(bounds[number]), int(bounds[number + 1]))
        return
    order = np.argsort(row_N, kind="stable")
    for block, pairs in _by_row(row_N[order], rows, step):
        yield block, order[pairs]
