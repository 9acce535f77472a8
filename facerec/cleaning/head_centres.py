"""The class weights of a checkpoint as centres of its identities; of sub-centres the dominant one.

Shape suffixes: C identities, K sub-centres, D embedding size, R embedded images.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facerec.errors import CheckpointError
from facerec.evaluation.identities import EmbeddedImages, by_identity
from facerec.images.images import LabelledImages
from facerec.models import checkpoint
from facerec.vectors import unit_rows

PUBLISHED: Final = math.cos(
    math.radians(75)
)  # InsightFace's sub-center recipe drops images beyond 75 degrees


def read_weights(path: Path, faces: LabelledImages) -> npt.NDArray[np.float32]:
    """The unit class weights of a checkpoint, (C, K, D).

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
    unit_CKD: npt.NDArray[np.float32] = unit_rows(weight)
    return unit_CKD


def dominant_centres(
    unit_CKD: npt.NDArray[np.float32], faces: LabelledImages, embedded: EmbeddedImages
) -> npt.NDArray[np.float32]:
    """Of each identity the sub-centre that is nearest to most of its images, (C, D).

    Deng et al. 2020, ECCV, "Sub-center ArcFace", section 3.3: the dominant sub-class.
    """
    centre_CD = unit_CKD[:, 0].copy()
    if unit_CKD.shape[1] > 1:
        for label, rows in by_identity(faces, embedded, "dominant sub-centres"):
            nearest_N = (np.asarray(embedded.unit_RD[rows]) @ unit_CKD[label].T).argmax(1)
            centre_CD[label] = unit_CKD[label, np.bincount(nearest_N).argmax()]
    return centre_CD
