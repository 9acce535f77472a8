"""Each image against the centre of its identity, and against those of others.

Shape suffixes: R embedded images (rows), C identities, J those that can be judged, D embedding size, P pairs
drawn, B a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from facerec.cleaning.thresholds import Limit, outlier_limit
from facerec.evaluation.identities import Centres, EmbeddedImages, centres_of
from facerec.evaluation.statistics.search import BLOCK
from facerec.images.images import LabelledImages
from facerec.vectors import unit_rows

Floats = npt.NDArray[np.float32]

_DRAWN: Final = 500_000  # cosines of images with other identities' centres


@dataclass(frozen=True)
class Thresholds:
    """Cosines that are given, None: chosen from the data.

    Attributes:
        outlier: an image below it is not of its identity.
        merge: identities whose centres reach it are one person.
        leak: an identity whose centre reaches it with an image of a test set is in the test.
        duplicate: images of an identity below it are no copies.
        false_drop: the part of right images that may be taken for outliers.
        min_images: identities with fewer embedded images are not judged.
    """

    outlier: float | None = None
    merge: float | None = None
    leak: float | None = None
    duplicate: float = 0.95
    false_drop: float = 0.01
    min_images: int = 3


@dataclass(frozen=True)
class Judged:
    """The images of a set against the centres.

    Attributes:
        judged_R: True for images of identities that can be judged.
        own_R: the cosines of these with their centres.
        impostor_P: cosines of images with the centres of other identities.
        limit: the threshold of outliers; None: there are too few to choose one from.
    """

    centres: Centres
    judged_R: npt.NDArray[np.bool_]
    own_R: Floats
    impostor_P: Floats
    limit: Limit | None


def judge(
    faces: LabelledImages,
    embedded: EmbeddedImages,
    given: Thresholds,
    centre_CD: Floats | None = None,
    seed: int = 0,
) -> Judged:
    """Compare each image with the centre of its identity, and choose the threshold of outliers.

    Args:
        centre_CD: unit centres of the identities, of a head; else robust ones are made, first of the half of
            an identity's images, then of all above the threshold that those lead to.
    """
    label_R = np.asarray(faces.label_N)[embedded.position_R]
    if centre_CD is not None:
        everything_R = np.ones(len(label_R), np.bool_)
        cosine_R = _cosines(embedded, np.arange(len(label_R)), centre_CD, label_R)
        return _judged(
            Centres(centre_CD, everything_R, cosine_R), everything_R, embedded, label_R, given, seed
        )
    count_C = np.bincount(label_R, minlength=faces.num_classes)
    judged_R = count_C[label_R] >= given.min_images
    first = _judged(centres_of(faces, embedded), judged_R, embedded, label_R, given, seed)
    if first.limit is None:
        return first
    centres = centres_of(faces, embedded, first.limit.least)
    return _judged(centres, judged_R, embedded, label_R, given, seed)


def _judged(
    centres: Centres,
    judged_R: npt.NDArray[np.bool_],
    embedded: EmbeddedImages,
    label_R: npt.NDArray[np.int64],
    given: Thresholds,
    seed: int,
) -> Judged:
    own_R = centres.cosine_R[judged_R]
    impostor_P = _impostors(centres, judged_R, embedded, label_R, np.random.default_rng(seed))
    limit = None
    if len(own_R) and len(impostor_P):
        limit = outlier_limit(own_R, impostor_P, given.false_drop, given.outlier)
    elif len(own_R) and given.outlier is not None:
        limit = Limit(given.outlier, None, None, None, "as given", given.outlier)
    return Judged(centres, judged_R, own_R, impostor_P, limit)


def _impostors(
    centres: Centres,
    judged_R: npt.NDArray[np.bool_],
    embedded: EmbeddedImages,
    label_R: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> Floats:
    """Cosines of images drawn with the centres of other identities that can be judged, drawn, too."""
    label_J = np.unique(label_R[judged_R])
    if len(label_J) < 2:
        return np.zeros(0, np.float32)
    row_P = np.sort(rng.integers(0, len(label_R), min(_DRAWN, 100 * len(label_R))))
    label_P = label_J[rng.integers(0, len(label_J), len(row_P))]
    differ_P = label_P != label_R[row_P]
    return _cosines(embedded, row_P[differ_P], centres.sum_CD, label_P[differ_P])


def _cosines(
    embedded: EmbeddedImages, row_P: npt.NDArray[np.int64], centre_CD: Floats, label_P: npt.NDArray[np.int64]
) -> Floats:
    """Cosines of some rows with the centres of some identities, pair by pair, block by block."""
    cosine_P = np.empty(len(row_P), np.float32)
    for first in range(0, len(row_P), BLOCK):
        some = slice(first, first + BLOCK)
        centre_BD = unit_rows(centre_CD[label_P[some]])
        cosine_P[some] = np.einsum("bd,bd->b", embedded.unit_RD[row_P[some]], centre_BD)
    return cosine_P
