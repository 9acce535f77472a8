"""A photograph as a face of a pack: decoded, upright, aligned or cropped, encoded; or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from facerec.errors import DamagedDataError, require
from facerec.images.align import TEMPLATE_52, align
from facerec.images.decode import (
    MAX_PHOTOGRAPH_PIXELS,
    Encoded,
    decode,
    decode_full_size,
    fit_into,
    read_header,
)
from facerec.images.detection import Face, Mtcnn, choose


class FaceFile(NamedTuple):
    """An encoded face, None where the photograph is dropped, and why, or else a remark on it or nothing.

    `found` is what the detector found in the photograph, if one looked and did.
    """

    payload: bytes | None
    note: str = ""
    found: Face | None = None


@dataclass(frozen=True)
class FaceMaker:
    """The settings by which photographs become faces.

    Args:
        size: side of the faces in pixels.
        quality: of the JPEG, 1 … 100, without chroma subsampling.
        keep: store the bytes of a JPEG or PNG as they are where it has the right size and is upright.
        detector: finds the faces to align; None: the photograph is resized by its short side and cropped at
            the centre, right for faces that are aligned or cropped already.
        no_face: with a detector, what to do where it finds none: ``drop`` the photograph, or ``crop`` it as
            without detector.
        several: with a detector, what to do where it finds several: take the ``largest`` and most central, or
            ``drop`` the photograph.
        min_face: with a detector, the least width and height of a face in pixels; smaller ones do not count.

    Raises:
        ConfigError: for a value out of range.
    """

    size: int = 112
    quality: int = 95
    keep: bool = False
    detector: Mtcnn | None = None
    no_face: Literal["drop", "crop"] = "drop"
    several: Literal["largest", "drop"] = "largest"
    min_face: int = 0

    def __post_init__(self) -> None:
        require(16 <= self.size <= 1024, "--size", self.size, "must be 16 to 1024 pixels")
        require(1 <= self.quality <= 100, "--quality", self.quality, "must be 1 to 100")
        require(self.no_face in ("drop", "crop"), "--no-face", self.no_face, "must be one of drop, crop")
        known = self.several in ("largest", "drop")
        require(known, "--several", self.several, "must be one of largest, drop")
        require(self.min_face >= 0, "--min-face", self.min_face, "must be 0 pixels or more")

    def make(self, encoded: Encoded) -> FaceFile:
        """The face in an encoded photograph; safe to call from several threads at once."""
        try:
            if self.keep and self._fits(encoded):
                decode(encoded, self.size)  # that all of it is there
                return FaceFile(bytes(encoded))
            face_HWC, note, found = self.face(encoded)
            return FaceFile(None if face_HWC is None else self.encode(face_HWC), note, found)
        except DamagedDataError as error:
            return FaceFile(None, str(error))
        except MemoryError:
            return FaceFile(None, "too large for the memory of this machine")

    def face(self, encoded: Encoded) -> tuple[np.ndarray | None, str, Face | None]:
        """The face in an encoded photograph, as pixels.

        Returns:
            uint8 RGB (size, size, 3), None where there is none; the other two as of `FaceFile`.

        Raises:
            DamagedDataError: it is no image, or a damaged one.
        """
        if self.detector is None:
            return decode(encoded, self.size, MAX_PHOTOGRAPH_PIXELS), "", None
        image_HWC = decode_full_size(encoded)
        found = self.detector.detect(image_HWC)
        faces = [face for face in found if face.side >= self.min_face]
        if not faces:
            largest = max((one.side for one in found), default=None)
            note = "no face found"
            if largest is not None:
                note = f"no face of {self.min_face} pixels; the largest has {largest:.0f}"
            if self.no_face == "drop":
                return None, note, None
            return self._cropped(image_HWC), f"{note}; cropped at the centre", None
        face = choose(faces, (image_HWC.shape[0], image_HWC.shape[1]))
        note = f"{len(faces)} faces found" if len(faces) > 1 else ""
        if note and self.several == "drop":
            return None, note, face
        note = f"{note}; took the largest and most central" if note else ""
        return self._aligned(image_HWC, face), note, face

    def _fits(self, encoded: Encoded) -> bool:
        """Return True if an image's header says that it can be stored as it is; raises DamagedDataError."""
        header = read_header(encoded)
        fits = header.height == header.width == self.size and header.orientation == 1
        return fits and header.format in ("JPEG", "PNG")

    def _cropped(self, image_HWC: np.ndarray) -> np.ndarray:
        face_HWC = np.empty((self.size, self.size, 3), np.uint8)
        fit_into(image_HWC, face_HWC)
        return face_HWC

    def _aligned(self, image_HWC: np.ndarray, face: Face) -> np.ndarray:
        """The face on the template; a large one is averaged down first, lest sampling skip pixels."""
        point_52 = face.point_52
        eyes = float(np.linalg.norm(point_52[1] - point_52[0]))
        times = int(eyes * 112 / (self.size * float(np.linalg.norm(TEMPLATE_52[1] - TEMPLATE_52[0]))))
        if times > 1:
            image_HWC = np.asarray(Image.fromarray(image_HWC).reduce(times))
            point_52 = (point_52 + 0.5) / times - 0.5
        return align(image_HWC, point_52, self.size)

    def encode(self, face_HWC: np.ndarray) -> bytes:
        """A face as JPEG."""
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(face_HWC), quality=self.quality, colorspace="RGB", colorsubsampling="444"
        )
        return encoded
