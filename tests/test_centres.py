"""Robust centres of identities, pairs of centres that are alike, and how alike strangers are by chance."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.errors import DamagedDataError, UserError
from facerec.evaluation import identities
from facerec.evaluation.embedding_files import embed_rows
from facerec.evaluation.identities import (
    centres_of,
    chance_cosine,
    cosines_without,
    halves_cosine,
    pairs_alike,
    robust_centre,
    tail_value,
)
from facerec.images.decode import decode
from facerec.images.preprocessing import Preprocessing
from facerec.loading.folders import FolderImages
from facerec.models.model import Model
from facerec.vectors import unit_rows
from tests.making import image
from tests.small_networks import Colours


def units(seed: int, count: int, size: int = 32) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32))


def images_of(person_D: np.ndarray, count: int, seed: int, spread: float = 0.8) -> np.ndarray:
    return unit_rows(person_D + spread * units(seed, count, len(person_D)))


@pytest.mark.parametrize(("right", "wrong"), [(2, 1), (3, 2), (5, 5), (20, 15), (600, 500)])
def test_a_centre_is_that_of_the_images_that_agree(right: int, wrong: int) -> None:
    person_D = units(0, 1, 128)[0]
    unit_ND = np.concatenate([units(1, wrong, 128), images_of(person_D, right, 2)])
    found = robust_centre(unit_ND, 0.5)
    assert (found.core_N == (np.arange(len(unit_ND)) >= wrong)).all()
    assert found.sum_D @ person_D / np.linalg.norm(found.sum_D) > 0.8
    assert found.cosine_N[:wrong].max() < 0.5 < found.cosine_N[wrong:].min()


def test_the_core_without_a_threshold_is_the_half_that_lies_closest_together() -> None:
    unit_ND = np.concatenate([images_of(units(3, 1)[0], 4, 4, 0.3), units(5, 3)])
    cosine_NN = unit_ND.astype(np.float64) @ unit_ND.T
    best = max(itertools.combinations(range(7), 4), key=lambda some: cosine_NN[np.ix_(some, some)].sum())
    assert tuple(np.flatnonzero(robust_centre(unit_ND).core_N)) == best


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 9))
def test_an_image_is_judged_by_the_others_of_the_core_alone(count: int, seed: int) -> None:
    unit_ND = units(seed, count)
    core_N = np.random.default_rng(seed).random(count) < 0.6
    core_N[0] = True
    for i, cosine in enumerate(cosines_without(unit_ND, core_N).tolist()):
        others = [j for j in np.flatnonzero(core_N) if j != i]
        mean_D = unit_ND[others].astype(np.float64).sum(0)
        wanted = unit_ND[i] @ mean_D / np.linalg.norm(mean_D) if others else 1
        assert cosine == pytest.approx(wanted, abs=1e-5)


def test_one_image_or_two_are_all_of_their_centre() -> None:
    assert robust_centre(units(0, 1)).cosine_N.tolist() == [1]
    two = units(1, 2)
    assert robust_centre(two, 0.9).core_N.all()
    assert robust_centre(two).cosine_N == pytest.approx([two[0] @ two[1]] * 2, abs=1e-6)
    assert np.isnan(halves_cosine(two[:1]))
    assert halves_cosine(two) == pytest.approx(two[0] @ two[1], abs=1e-6)


@pytest.mark.parametrize("block", [3, 7, 4096])
def test_pairs_alike_are_those_of_all_products(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "BLOCK", block)
    one_CD, other_GD = 5 * units(0, 20, 4), units(1, 11, 4)
    cosine_CG = unit_rows(one_CD) @ other_GD.T
    for found, cosine in (
        (pairs_alike(one_CD, other_GD, least=0.4), cosine_CG),
        (pairs_alike(one_CD, least=0.4), np.triu(unit_rows(one_CD) @ unit_rows(one_CD).T, 1)),
    ):
        wanted = {(int(i), int(j)) for i, j in np.argwhere(cosine >= 0.4)}
        assert set(zip(found.first_K.tolist(), found.second_K.tolist(), strict=True)) == wanted
        assert len(found.first_K) == len(wanted) > 3
        assert (np.diff(found.cosine_K) <= 0).all()
        assert found.cosine_K == pytest.approx(cosine[found.first_K, found.second_K], abs=1e-6)


def test_too_many_pairs_are_refused_and_none_are_none() -> None:
    with pytest.raises(UserError, match=r"more than 5 pairs .* cosine of 0\.100 or more; give a higher"):
        pairs_alike(units(0, 30), least=0.1, most=5)
    assert not len(pairs_alike(np.zeros((4, 8), np.float32), least=0.1).first_K), "zero rows are like none"
    assert not len(pairs_alike(units(0, 5)[:0], least=0.5).first_K)


def test_chance_is_read_from_the_cosines_of_strangers() -> None:
    row_CD = units(0, 2000, 64)
    comparisons = 2000 * 1999 / 2
    cosine_P = (row_CD @ row_CD.T)[np.triu_indices(2000, 1)]
    for false in (2000, 200):  # within the sample: as counted
        least = chance_cosine([row_CD], comparisons, false)
        assert int((cosine_P >= least).sum()) == pytest.approx(false, rel=0.02)
    least = chance_cosine([row_CD], comparisons, 2)  # beyond: fewer than asked for, but not by orders
    assert 0 <= int((cosine_P >= least).sum()) <= 2
    assert least < cosine_P.max() + 0.15


def test_chance_needs_some_pairs_of_strangers() -> None:
    assert chance_cosine([units(0, 9)], 1000, 1) is None
    assert chance_cosine([np.zeros((500, 4), np.float32)], 1000, 1) is None, "zero rows are nobody"
    assert chance_cosine([units(0, 9), units(1, 9)], 1000, 1) is not None


def test_an_exponential_tail_is_continued() -> None:
    part = (np.arange(200_000) + 0.5) / 200_000
    value = tail_value((-0.05 * np.log(part)).astype(np.float32), 1e-8)
    assert value == pytest.approx(-0.05 * np.log(1e-8), rel=0.02)


def test_centres_of_a_set_are_of_its_sound_images(tmp_path: Path) -> None:
    """Identity 1 has a file that is no image, 3 has no other."""
    photographs, scratch = tmp_path / "photographs", tmp_path / "scratch"
    scratch.mkdir()
    for seed, name in enumerate(("0/a", "0/b", "0/c", "1/a", "1/b", "2/a", "3/a")):
        (photographs / name[0]).mkdir(parents=True, exist_ok=True)
        (photographs / f"{name}.jpg").write_bytes(image(seed) if name not in ("1/b", "3/a") else b"nothing")
    model = Model(Colours(), Preprocessing(size=16))
    faces = FolderImages(photographs)
    embedded = embed_rows(model, faces, scratch / "embeddings", batch_size=4)
    assert embedded.position_R.tolist() == [0, 1, 2, 3, 5] and list(embedded.damaged) == [4, 6]
    assert not list(scratch.iterdir()), "the file has no name"
    image_BHWC = np.stack([decode(faces.encoded(i), 16) for i in (0, 1, 2, 3, 5)])
    assert embedded.row_RD == pytest.approx(model.embed(image_BHWC).numpy(), abs=1e-6)
    found = centres_of(faces, embedded)
    for label, rows in ((0, [0, 1, 2]), (1, [3]), (2, [4])):
        alone = robust_centre(np.asarray(embedded.row_RD[rows]))
        assert found.sum_CD[label] == pytest.approx(alone.sum_D)
        assert found.cosine_R[rows] == pytest.approx(alone.cosine_N)
    assert not found.sum_CD[3].any()


def test_a_set_without_a_sound_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DamagedDataError, match="0 of 1 image could be embedded: "):
        embed_rows(Model(Colours(), Preprocessing(size=16)), FolderImages(tmp_path))
