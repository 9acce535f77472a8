"""A model to use: photographs in, unit embeddings and decisions out.

Shape suffixes: B images, H height, W width, D embedding size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, MissingDataError, UserError, require
from facerec.images.decode import MAX_PHOTOGRAPH_PIXELS, decode, ppm, read_file
from facerec.images.face_maker import FaceMaker
from facerec.models.opening import load_model
from facerec.models.threshold import Threshold
from facerec.threads import ordered_map

Image: TypeAlias = str | Path | npt.NDArray[np.uint8]

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

    def embed(self, images: Image | Sequence[Image], align: bool = True) -> npt.NDArray[np.float32]:
        """Unit embeddings, float32 (B, D): the dot product of two rows is their cosine.

        Args:
            images: a path, an RGB array (H, W, 3) of uint8, or several of them (also (B, H, W, 3)).
            align: find the face in each, the largest and most central one, and align it (extra ``align``);
                False: they are aligned already, and resized and cropped where their size is another.

        Raises:
            DamagedDataError: an image that does not decode, or in which no face is found.
            MissingDataError: a file is not there, or the extra ``align`` is not installed.
            UserError: an array that is no RGB image.
        """
        if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        require(len(images) > 0, "images", "[]", "must be one image or more")
        faces = ordered_map(lambda numbered: self._face(*numbered, align), enumerate(images))
        batches: list[npt.NDArray[np.float32]] = []
        batch: list[np.ndarray] = []
        for face in faces:
            batch.append(face)
            if len(batch) == _BATCH:
                batches.append(self._embed(batch))
                batch = []
        return np.concatenate([*batches, self._embed(batch)] if batch else batches)

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
        cosine = float(one_D @ other_D)
        told = self.threshold
        return Verified(cosine > told.cosine, cosine, told.probability(cosine, prior), told.far, told.set)

    @cached_property
    def _maker(self) -> FaceMaker:
        from facerec.images.detection import Mtcnn

        height, width = self.model.input.shape
        only = "faces are aligned to squares only; align before, and set align=False"
        require(height == width, "align", f"{height}×{width}", only)
        return FaceMaker(height, detector=Mtcnn())

    def _face(self, i: int, image: Image, align: bool) -> np.ndarray:
        """A face of the model's size."""
        where = f"image {i}" if isinstance(image, np.ndarray) else str(image)
        if not isinstance(image, np.ndarray):
            try:
                encoded = read_file(Path(image))
            except OSError as error:
                raise MissingDataError(f"{where}: cannot be read: {error.strerror}") from error
        elif image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            encoded = ppm(np.ascontiguousarray(image))
        else:
            shape = tuple(image.shape)
            raise UserError(f"{where}: is {image.dtype} of shape {shape}; give uint8 RGB of (H, W, 3)")
        try:
            if not align:
                height, width = self.model.input.shape
                return decode(encoded, (height, width), MAX_PHOTOGRAPH_PIXELS)
            face_HW3, note, _ = self._maker.face(encoded)
        except DamagedDataError as error:
            raise DamagedDataError(f"{where}: {error}") from error
        if face_HW3 is None:
            raise DamagedDataError(f"{where}: {note}")
        return face_HW3

    def _embed(self, faces: list[np.ndarray]) -> npt.NDArray[np.float32]:
        flip = True if self.threshold is None else self.threshold.flip
        with self._lock:
            return self.model.embed(np.stack(faces), flip=flip, batch_size=_BATCH).numpy()
