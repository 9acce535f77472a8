"""Align a face by five points to the usual 112×112 template: a similarity transform by least squares."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from facerec.errors import DamagedDataError

TEMPLATE_52: Final = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye, right eye, nose, left and right mouth corner (as seen in the image) of a 112×112 face: x, y."""


def similarity(points_K2: npt.ArrayLike, target_K2: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The rotation, scale and shift that takes points nearest to their targets (least squares, no
    reflection).

    Args:
        points_K2, target_K2: K ≥ 2 points (x, y) that are not all the same.

    Returns:
        (2, 3) matrix M with target ≈ M[:, :2] @ point + M[:, 2].

    Raises:
        DamagedDataError: all points are the same, or one is not finite.
    """
    # As complex numbers a similarity is z → a z + b, and least squares has the closed form of a line through
    # points.
    point_K, target_K = (np.asarray(array, np.float64) @ [1, 1j] for array in (points_K2, target_K2))
    centred_K = point_K - point_K.mean()
    sum_of_squares = float((np.abs(centred_K) ** 2).sum())
    if not 0 < sum_of_squares < np.inf:
        raise DamagedDataError(f"landmarks {np.asarray(points_K2).tolist()} span no face")
    a = (centred_K.conj() * (target_K - target_K.mean())).sum() / sum_of_squares
    b = target_K.mean() - a * point_K.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(
    image_HWC: npt.NDArray[np.uint8], points_52: npt.ArrayLike, size: int = 112
) -> npt.NDArray[np.uint8]:
    """Cut a face out of an image so that its five points lie on the template; black outside of the image.

    Args:
        image_HWC: uint8 (H, W, 3).
        points_52: left eye, right eye, nose, left and right mouth corner as seen in the image; x, y in
            pixels, (0, 0) being the centre of the first pixel.
        size: height and width of the result; the template is scaled with it.

    Returns:
        uint8 (size, size, 3), bilinear.

    Raises:
        DamagedDataError: the points span no face.
    """
    forward = similarity(points_52, TEMPLATE_52 * (size / 112))
    turn = np.linalg.inv(forward[:, :2])
    # PIL wants the way back from the result, and measures from the corner of the first pixel, not its centre.
    shift = -turn @ forward[:, 2] + 0.5 - turn @ [0.5, 0.5]
    coefficients = (*turn[0], shift[0], *turn[1], shift[1])
    image = Image.fromarray(image_HWC)
    return np.asarray(
        image.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    )


def middle(face_HWC: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Cut (height, width) out of the middle of a face whose side is the larger of the two.

    SphereFace's template of 112×96 is that of 112×112 without 8 pixels at the left and at the right.
    """
    top, left = ((side - own) // 2 for side, own in zip(face_HWC.shape, shape, strict=False))
    return face_HWC[top : top + shape[0], left : left + shape[1]]
