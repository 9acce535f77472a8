"""Embed images of any size, portion by portion; those that cannot be decoded are passed over and named.

Shape suffixes: P images that were embedded, D embedding size, H height, W width, C channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, require
from facerec.evaluation.embedding import Embeddings, embed_images
from facerec.images.decode import Pixels, decode_full_size, fit_into
from facerec.images.face_maker import FaceMaker
from facerec.images.images import Images
from facerec.models.model import Model
from facerec.threads import ordered_map

PORTION: Final = 1024  # images decoded while as many are in the model: 2 × 38 MB at 112×112
_SLICE: Final = 16  # images per task of a thread


class Portion(NamedTuple):
    """Some distinct images of a set.

    Attributes:
        positions: of the images that were embedded.
        images: their pixels, uint8 RGB of the model's size.
        embedding_PD: float32 e + e' (e without flip), not normalised; None where there are none.
        failed: why each of the others could not be decoded, or has no face.
        resized: how many were of another size.
    """

    positions: list[int]
    images: list[Pixels]
    embedding_PD: Embeddings | None
    failed: dict[int, DamagedDataError | MissingDataError]
    resized: int


class _Prepared(NamedTuple):
    """An image for the model, or why there is none."""

    image_HWC: Pixels | None
    error: DamagedDataError | MissingDataError | None = None
    resized: bool = False


def embed_any(
    model: Model,
    images: Images,
    *,
    flip: bool = True,
    batch_size: int = 128,
    precision: str = "fp32",
    align: bool = False,
) -> Iterator[Portion]:
    """Embed each distinct image once, see `embed_images`; `model.cache` keeps portions.

    Args:
        align: find the face in each image and align it (extra ``align``); else they are aligned already, and
            resized by the short side and cut from the middle where their size is another.

    Raises:
        NonFiniteError: an embedding, named.
    """
    maker = _aligning(model) if align else None
    for portion, faces in _portions(model, images, maker):
        kept = [
            (i, face.image_HWC) for i, face in zip(portion, faces, strict=True) if face.image_HWC is not None
        ]
        positions, pixels = [i for i, _ in kept], [image_HWC for _, image_HWC in kept]
        embedding_PD = None
        if kept:
            embedding_PD = embed_images(
                model,
                pixels,
                name=f"embedding {portion[0]:,} of {len(images):,}",
                where=lambda i, kept=positions: images.where(kept[i]),  # type: ignore[misc]
                flip=flip,
                batch_size=batch_size,
                precision=precision,
            ).summed_PD
        failed = {i: face.error for i, face in zip(portion, faces, strict=True) if face.error is not None}
        yield Portion(positions, pixels, embedding_PD, failed, sum(face.resized for face in faces))


def _aligning(model: Model) -> FaceMaker:
    from facerec.images.detection import Mtcnn

    height, width = model.input.shape
    only = "aligns to squares only; align before, or leave out"
    require(height == width, "--align", f"{height}×{width}", only)
    return FaceMaker(height, detector=Mtcnn())


def _portions(
    model: Model, images: Images, maker: FaceMaker | None
) -> Iterator[tuple[list[int], list[_Prepared]]]:
    """Some distinct images at a time, and their pixels; the next ones are decoded meanwhile."""
    distinct_P = np.arange(len(images)) if images.first_N is None else np.unique(images.first_N)
    shape = model.input.shape[0], model.input.shape[1]

    def prepare(first: int) -> list[_Prepared]:
        return [_prepared(images, i, shape, maker) for i in distinct_P[first : first + _SLICE].tolist()]

    slices = range(0, len(distinct_P), _SLICE)
    with contextlib.closing(ordered_map(prepare, slices, ahead=PORTION // _SLICE)) as done:
        prepared = chain.from_iterable(done)
        for first in range(0, len(distinct_P), PORTION):
            yield distinct_P[first : first + PORTION].tolist(), list(islice(prepared, PORTION))


def _prepared(images: Images, image: int, shape: tuple[int, int], maker: FaceMaker | None) -> _Prepared:
    try:
        encoded = images.encoded(image)
        if maker is not None:
            image_HWC, note, _ = maker.face(encoded)
            return _Prepared(image_HWC, DamagedDataError(note) if image_HWC is None else None)
        image_HWC = decode_full_size(encoded)
    except (DamagedDataError, MissingDataError) as error:
        return _Prepared(None, error)
    fitted_HWC = np.empty((*shape, 3), np.uint8)
    fit_into(image_HWC, fitted_HWC)
    return _Prepared(fitted_HWC, resized=image_HWC.shape != fitted_HWC.shape)
