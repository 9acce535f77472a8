"""Each image against the centre of its identity and those of others, and the cosine from which it belongs.

Shape suffixes: N images of an identity or judged ones, R embedded images (rows), C identities, K sub-centres,
J identities that can be judged, D embedding size, P pairs drawn, B a block, Q quantiles and thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.errors import CheckpointError
from facerec.evaluation.embedding_files import EmbeddedImages
from facerec.evaluation.identities import Centres, by_identity, centres_of
from facerec.evaluation.statistics.search import BLOCK
from facerec.images.images import LabelledImages
from facerec.models import checkpoint
from facerec.vectors import unit_rows

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

PUBLISHED: Final = math.cos(
    math.radians(75)
)  # InsightFace's sub-center recipe drops images beyond 75 degrees
_DRAWN: Final = 500_000  # cosines of images with other identities' centres
_QUANTILES: Final = np.linspace(0.1, 0.95, 18)
_STEPS: Final = 2000  # thresholds that are tried


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


class Limit(NamedTuple):
    """A threshold and what it is expected to do.

    Attributes:
        least: cosine that an image of the identity reaches.
        said: how it was chosen.
        wrong: estimated part of wrong images among those judged; None: not estimated.
        false_drop: estimated part of the right images below it.
        found: estimated part of the wrong images below it.
        widest: what images must be below to be a further person's, if several of them agree.
    """

    least: float
    said: str = "as given"
    wrong: float | None = None
    false_drop: float | None = None
    found: float | None = None
    widest: float = -1.0

    @property
    def estimate(self) -> str:
        """A sentence about what is expected of it; empty where nothing was estimated."""
        if self.wrong is None or self.false_drop is None:
            return ""
        of_those = "" if self.found is None else f", {100 * self.found:.0f} % of them below the threshold"
        return (
            f"estimated: {100 * self.wrong:.1f} % of the judged images have a wrong label{of_those}, with "
            f"{100 * self.false_drop:.1f} % of the right ones"
        )


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
    judged_R: Bools
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

    def cosines(row_P: npt.NDArray[np.int64], centre_CD: Floats, label_P: npt.NDArray[np.int64]) -> Floats:
        """Cosines of some rows with the centres of some identities, pair by pair, block by block."""
        cosine_P = np.empty(len(row_P), np.float32)
        for first in range(0, len(row_P), BLOCK):
            some = slice(first, first + BLOCK)
            centre_BD = unit_rows(centre_CD[label_P[some]])
            cosine_P[some] = np.einsum("bd,bd->b", embedded.row_RD[row_P[some]], centre_BD)
        return cosine_P

    def judged(centres: Centres, judged_R: Bools) -> Judged:
        own_R, impostor_P, limit = centres.cosine_R[judged_R], np.zeros(0, np.float32), None
        label_J = np.unique(label_R[judged_R])
        if len(label_J) > 1:
            rng = np.random.default_rng(seed)
            row_P = np.sort(rng.integers(0, len(label_R), min(_DRAWN, 100 * len(label_R))))
            label_P = label_J[rng.integers(0, len(label_J), len(row_P))]
            differ_P = label_P != label_R[row_P]
            impostor_P = cosines(row_P[differ_P], centres.sum_CD, label_P[differ_P])
        if len(own_R) and len(impostor_P):
            limit = outlier_limit(own_R, impostor_P, given.false_drop, given.outlier)
        elif len(own_R) and given.outlier is not None:
            limit = Limit(given.outlier, widest=given.outlier)
        return Judged(centres, judged_R, own_R, impostor_P, limit)

    if centre_CD is not None:
        everything_R = np.ones(len(label_R), np.bool_)
        cosine_R = cosines(np.arange(len(label_R)), centre_CD, label_R)
        return judged(Centres(centre_CD, everything_R, cosine_R), everything_R)
    judged_R = np.bincount(label_R, minlength=faces.num_classes)[label_R] >= given.min_images
    first = judged(centres_of(faces, embedded), judged_R)
    if first.limit is None:
        return first
    return judged(centres_of(faces, embedded, first.limit.least), judged_R)


def outlier_limit(
    own_N: Floats, impostor_P: Floats, false_drop: float = 0.01, least: float | None = None
) -> Limit:
    """The cosine below which the most wrong images lie less the right ones, of whom only few may.

    Images with a wrong label are strangers to their identity's centre, so their cosines are distributed as
    those of images with the centres of other identities, I; those of all images are F = (1 − w)·G + w·I. The
    part w is at most F(t) / I(t) at any t; the least of these at 18 quantiles of I is taken for it (as Storey
    2002 bounds the part of true null hypotheses), F two standard deviations up, as images may be few. So
    G = (F − w·I) / (1 − w) is the part of right images below a threshold. The one that maximises
    w·I − (1 − w)·G, where G is at most `false_drop`, is taken; `widest` is the last where G is.

    Args:
        own_N: cosine of each image with the centre of its identity without it.
        impostor_P: cosines of images with centres of other identities.
        false_drop: the most of G, in [0, 1).
        least: take this threshold; the parts are estimated for it.
    """
    own_N, impostor_P = np.sort(own_N), np.sort(impostor_P)
    below_Q = np.searchsorted(own_N, np.quantile(impostor_P, _QUANTILES))
    deviation_Q = np.sqrt(below_Q + below_Q**2 * (1 / _QUANTILES - 1) / len(impostor_P))
    most_Q = (below_Q + 1 + 2 * deviation_Q) / len(own_N)
    wrong = float(np.clip((most_Q / _QUANTILES).min(), 0, 1 - 1e-9))
    step_Q = np.array([least])
    if least is None:
        some_Q = own_N[np.linspace(0, len(own_N) - 1, min(_STEPS, len(own_N))).astype(int)]
        step_Q = np.r_[some_Q[0] - 1e-6, (some_Q[1:] + some_Q[:-1]) / 2]
    all_Q = np.searchsorted(own_N, step_Q) / len(own_N)
    wrong_Q = wrong * (np.searchsorted(impostor_P, step_Q) / len(impostor_P))
    right_Q = np.maximum(all_Q - wrong_Q, 0) / (1 - wrong)
    at, said = 0, "as given"
    if least is None:
        at = int(np.where(right_Q <= false_drop, 2 * wrong_Q - all_Q, -np.inf).argmax())
        said = f"below which most wrong images lie, and at most {100 * false_drop:g} % of the right ones"
    widest = float(step_Q[right_Q <= false_drop].max()) if least is None else least
    found = float(wrong_Q[at] / wrong) if wrong else None
    return Limit(float(step_Q[at]), said, wrong, float(right_Q[at]), found, widest)


# Centres of a head --------------------------------------------------------------------------------------


def read_weights(path: Path, faces: LabelledImages) -> Floats:
    """The unit class weights of a checkpoint as centres of its identities, (C, K, D).

    Raises:
        CheckpointError: it has no class weights, or was trained on other identities than those of `faces`.
    """
    opened = checkpoint.open_checkpoint(path)
    weight: Any = opened.read("head").get("weight")
    if weight is None or weight.ndim not in (2, 3):
        raise CheckpointError(f"ckpt={path}: its head has no class weights; leave out --centres head")
    classes: Any = opened.rest.get("classes", ())
    known = [str(one) for one in (classes.tolist() if hasattr(classes, "tolist") else classes)]
    if known != [str(one) for one in faces.classes] or len(weight) != len(known):
        raise CheckpointError(
            f"ckpt={path}: was trained on {len(known):,} identities that are not those of {faces.root}; "
            "--centres head needs the pack it was trained on"
        )
    weight = weight.float().numpy().reshape(len(weight), -1, weight.shape[-1])
    unit_CKD: Floats = unit_rows(weight, "class row")
    return unit_CKD


def dominant_centres(unit_CKD: Floats, faces: LabelledImages, embedded: EmbeddedImages) -> Floats:
    """Of each identity the sub-centre that is nearest to most of its images, (C, D).

    Deng et al. 2020, ECCV, "Sub-center ArcFace", section 3.3: the dominant sub-class.
    """
    centre_CD = unit_CKD[:, 0].copy()
    if unit_CKD.shape[1] > 1:
        for label, rows in by_identity(faces, embedded, "dominant sub-centres"):
            nearest_N = (np.asarray(embedded.row_RD[rows]) @ unit_CKD[label].T).argmax(1)
            centre_CD[label] = unit_CKD[label, np.bincount(nearest_N).argmax()]
    return centre_CD
