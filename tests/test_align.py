"""Five-point alignment: exact on similarity transforms, and the same image as OpenCV's."""

import numpy as np
import pytest

from facerec.errors import DamagedDataError
from facerec.images.align import TEMPLATE_52, align, similarity


def moved(points, scale, angle, shift):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T + shift


def smooth_image(height=220, width=260):
    y, x = np.mgrid[:height, :width]
    channels = [127 + 120 * np.sin(x / a) * np.cos(y / b) for a, b in ((19, 23), (31, 17), (13, 29))]
    return np.stack(channels, axis=-1).astype(np.uint8)


def test_a_similarity_transform_is_found_exactly():
    target = moved(TEMPLATE_52, 1.7, 0.4, [30, -12])
    matrix = similarity(TEMPLATE_52, target)
    np.testing.assert_allclose(TEMPLATE_52 @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-9)


def test_no_similarity_is_nearer_in_the_sense_of_least_squares():
    rng = np.random.default_rng(0)
    points = moved(TEMPLATE_52, 2.0, -0.3, [60, 40]) + rng.normal(0, 3, (5, 2))
    matrix = similarity(points, TEMPLATE_52)

    def error(m):
        return ((points @ m[:, :2].T + m[:, 2] - TEMPLATE_52) ** 2).sum()

    a, c, x, y = matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2]
    for step in np.concatenate([np.eye(4), -np.eye(4)]) * 1e-3:
        p, q, u, v = np.array([a, c, x, y]) + step
        assert error(np.array([[p, -q, u], [q, p, v]])) > error(matrix)


@pytest.mark.parametrize("size", [112, 224])
def test_the_image_equals_opencvs(size):
    cv2 = pytest.importorskip("cv2")
    image = smooth_image()
    points = moved(TEMPLATE_52, 1.3, 0.25, [40, 20])
    matrix = similarity(points, TEMPLATE_52 * (size / 112))
    expected = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
    difference = np.abs(align(image, points, size).astype(int) - expected)
    assert difference.max() <= 3  # OpenCV interpolates with 5 bits
    assert difference.mean() < 0.5


def test_points_already_on_the_template_change_nothing():
    image = smooth_image(112, 112)
    np.testing.assert_array_equal(align(image, TEMPLATE_52), image)


@pytest.mark.parametrize("points", [np.full((5, 2), 7.0), np.full((5, 2), np.nan)])
def test_points_that_span_no_face_are_refused(points):
    with pytest.raises(DamagedDataError, match=r"landmarks .* span no face"):
        align(smooth_image(), points)
