"""A model to use: photographs in, unit embeddings and decisions out.

Shape suffixes: B images, H height, W width, D embedding size.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image

from facerec.errors import DamagedDataError, MissingDataError, UserError, require
from facerec.images.align import middle
from facerec.images.decode import MAX_PHOTOGRAPH_PIXELS, decode, pixels_of, ppm, read_file
from facerec.images.face_maker import FaceMaker
from facerec.models.model import Threshold
from facerec.models.opening import load_model
from facerec.threads import ordered_map

Image: TypeAlias = str | Path | bytes | npt.NDArray[np.uint8] | PIL.Image.Image

_BATCH = 32


class Verified(NamedTuple):
    """The decision on two faces.

    Attributes:
        same: the cosine is above the model's threshold.
        cosine: of the two embeddings.
        probability: that they are of one identity, calibrated on the threshold's set.
        far: part of the impostor pairs of that set that is called same, at most.
        set: its name.
    """

    same: bool
    cosine: float
    probability: float
    far: float
    set: str


class FaceModel:
    """Any model that `facerec.load_model` opens; threads may share one.

    ONNX runs in onnxruntime, everything else in torch.

    Args:
        path: a file, a folder of the Hugging Face hub, or a repository there.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        options: further ones of `load_model`.

    Attributes:
        threshold: that came with the model; None where it has none.
    """

    def __init__(self, path: str | Path, *, device: str = "auto", **options: Any) -> None:
        self.model = load_model(path, device=device, **options)
        self.threshold: Threshold | None = self.model.threshold
        self._lock = threading.Lock()

    def embed(self, images: Image | Iterable[Image], align: bool = True) -> npt.NDArray[np.float32]:
        """Unit embeddings, float32 (B, D): the dot product of two rows is their cosine.

        Args:
            images: a path, the bytes of an image file, an image of Pillow, a uint8 RGB array (H, W, 3), or
                several of them (also (B, H, W, 3)).
            align: find the face in each, the largest and most central one, and align it (extra ``align``);
                False: they are aligned already, and resized and cropped where their size is another.

        Raises:
            DamagedDataError: an image that does not decode, or in which no face is found.
            MissingDataError: a file is not there, or the extra ``align`` is not installed.
            UserError: none of these, or an array that is no RGB image.
        """
        array = isinstance(images, np.ndarray) and images.ndim in (2, 3)
        one = array or not isinstance(images, Iterable) or isinstance(images, str | bytes)
        several: Iterable[Any] = [images] if one else images  # type: ignore[assignment]
        faces = ordered_map(lambda numbered: self._face(*numbered, align), enumerate(several))
        batches: list[npt.NDArray[np.float32]] = []
        while batch := list(itertools.islice(faces, _BATCH)):
            batches.append(self._embed(batch))
        require(bool(batches), "images", "[]", "must be one image or more")
        return np.concatenate(batches)

    def verify(self, a: Image, b: Image, align: bool = True, prior: float = 0.5) -> Verified:
        """Say whether two images show one identity, with the threshold that came with the model.

        Args:
            a, b, align: see `embed`.
            prior: how many of the pairs that are met are of one identity, above 0 and below 1; the
                probability depends on it, the decision does not.

        Raises:
            UserError: the model has no threshold; and see `embed`.
        """
        if self.threshold is None:
            raise UserError(
                f"{self.model.path}: has no threshold; facerec-export ckpt=… 'eval.targets=[lfw]' "
                "eval.root=BINS writes a file that has one"
            )
        require(0 < prior < 1, "prior", prior, "must be above 0 and below 1")
        one_D, other_D = self.embed([a, b], align)
        cosine = min(1.0, max(-1.0, float(one_D @ other_D)))  # rounding
        told = self.threshold
        return Verified(cosine > told.cosine, cosine, told.probability(cosine, prior), told.far, told.set)

    @cached_property
    def _maker(self) -> FaceMaker:
        from facerec.images.detection import Mtcnn

        return FaceMaker(max(self.model.input.shape), detector=Mtcnn())

    def _face(self, i: int, image: Image, align: bool) -> np.ndarray:
        """A face of the model's size."""
        where = str(image) if isinstance(image, str | Path) else f"image {i}"
        try:
            encoded = _encoded(image, where)
            height, width = self.model.input.shape
            if not align:
                return decode(encoded, (height, width), MAX_PHOTOGRAPH_PIXELS)
            face_HW3, note, _ = self._maker.face(encoded)
        except DamagedDataError as error:
            raise DamagedDataError(f"{where}: {error}") from error
        if face_HW3 is None:
            raise DamagedDataError(f"{where}: {note}")
        return middle(face_HW3, (height, width))

    def _embed(self, faces: list[np.ndarray]) -> npt.NDArray[np.float32]:
        flip = True if self.threshold is None else self.threshold.flip
        with self._lock:
            return self.model.embed(np.stack(faces), flip=flip, batch_size=_BATCH).numpy()


def _encoded(image: Any, where: str) -> bytes:
    """An image of any kind that `FaceModel.embed` takes as the bytes of a file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return read_file(Path(image))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MissingDataError(f"{where}: cannot be read: {reason}") from error
    if isinstance(image, PIL.Image.Image):
        image = pixels_of(image)
    kinds = "a path, the bytes of an image file, an image of Pillow, or uint8 RGB of (H, W, 3)"
    if not isinstance(image, np.ndarray):
        raise UserError(f"{where}: is {type(image).__name__}; give {kinds}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"{where}: is {image.dtype} of shape {tuple(image.shape)}; give uint8 RGB of (H, W, 3)"
        )
    return ppm(np.ascontiguousarray(image))
