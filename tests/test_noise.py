"""Wrong labels on purpose: how many, which, and that they follow from the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facerec.errors import ConfigError
from facerec.images.decode import ppm
from facerec.loading.loader import Loader
from facerec.loading.noise import lookalikes, with_label_noise
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.registry import build
from tests.tiny_run import MemoryImages


def noisy_faces(**given: Any):
    return open_faces(DataSettings(kind="synthetic", identities=20, images=1000, size=32, **given))


def test_the_share_asked_for_is_wrong_and_never_its_own_label() -> None:
    faces = noisy_faces(label_noise=0.3)
    wrong = faces.label_N != faces.clean_label_N
    assert wrong.sum() == 300
    assert np.array_equal(faces.clean_label_N, noisy_faces().label_N)
    assert set(faces.label_N.tolist()) <= set(range(20))
    # uniform: a wrong label may be any other
    assert len(np.unique((faces.label_N - faces.clean_label_N)[wrong] % 20)) == 19
    assert "300 labels (30 %) made wrong, uniform" in faces.describe()


def test_noise_is_a_function_of_its_seed() -> None:
    one, same, other = (noisy_faces(label_noise=0.3, noise_seed=seed).label_N for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    # a larger fraction keeps what a smaller one has made wrong
    more = noisy_faces(label_noise=0.5, noise_seed=1)
    changed = one != more.clean_label_N
    assert np.array_equal(one[changed], more.label_N[changed])


def test_without_noise_the_face_set_is_as_it_was() -> None:
    faces = noisy_faces()
    assert not hasattr(faces, "clean_label_N")
    assert with_label_noise(faces, 0.0) is faces


def test_images_and_places_stay_those_of_the_set() -> None:
    clean, noisy = noisy_faces(), noisy_faces(label_noise=0.5)
    assert clean.encoded(7) == noisy.encoded(7)
    assert clean.where(7) == noisy.where(7)
    assert (noisy.num_classes, len(noisy), noisy.root) == (20, 1000, clean.root)
    batch = next(Loader(noisy, 8, DataSettings(size=32)).batches(0))
    assert np.array_equal(batch.label_B.numpy(), noisy.label_N[batch.index_B])


def shades() -> MemoryImages:
    """Identities that are stripes of growing width: neighbours look alike."""
    image_CHWC = np.zeros((8, 32, 32, 3), np.uint8)
    for identity in range(8):
        image_CHWC[identity, :, : 2 + 4 * identity] = 200
    return MemoryImages(
        "shades", np.repeat(np.arange(8), 5), [ppm(one) for one in image_CHWC for _ in range(5)]
    )


def test_confusable_labels_are_those_of_lookalikes() -> None:
    alike = lookalikes(shades(), count=2)
    assert set(alike[3].tolist()) == {2, 4}
    faces = with_label_noise(shades(), 0.5, "confusable", seed=0)
    wrong = faces.label_N != faces.clean_label_N
    assert wrong.sum() == 20
    near = lookalikes(shades())
    for old, new in zip(faces.clean_label_N[wrong], faces.label_N[wrong], strict=True):
        assert new in near[old]


@pytest.mark.slow
def test_confusable_labels_on_real_faces(lfw_root: Path) -> None:
    faces = open_faces(DataSettings(kind="rec", root=str(lfw_root), label_noise=0.2, noise_kind="confusable"))
    wrong = faces.label_N != faces.clean_label_N
    assert wrong.sum() == round(0.2 * len(faces))
    assert "confusable" in faces.describe()


def test_shares_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.label_noise=1: must be from 0 to below 1"):
        DataSettings(label_noise=1.0)
    with pytest.raises(ConfigError, match=r"data\.noise_kind=near: must be one of uniform, confusable"):
        build(DataSettings, "data", {"noise_kind": "near"})
