"""P×K batches: balanced, repeatable, entered anywhere, shared by processes, cheap on millions of images."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from facerec.errors import ConfigError
from facerec.loading.loader import Loader
from facerec.loading.order import IdentityOrder
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces


def labels(sizes: list[int], mixed: bool = False) -> np.ndarray:
    label_N = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(label_N) if mixed else label_N


SIZES = [7, 4, 30, 9, 4, 12, 5, 8, 16, 5]


@pytest.mark.parametrize("mixed", [False, True])
def test_groups_of_k_different_images_of_one_identity(mixed: bool) -> None:
    label_N = labels(SIZES, mixed)
    order = IdentityOrder(label_N, seed=3, images_per_identity=4)
    group_MK = order.take(0, 0, 100).reshape(25, 4)
    assert (label_N[group_MK] == label_N[group_MK[:, :1]]).all()
    assert all(len(set(group)) == 4 for group in group_MK.tolist())


def test_every_identity_has_its_turn_once_a_round() -> None:
    label_N = labels(SIZES)
    order = IdentityOrder(label_N, images_per_identity=4)
    round_RC = label_N[order.take(2, 0, 80)][::4].reshape(2, 10)
    assert (np.sort(round_RC, axis=1) == np.arange(10)).all()
    assert (round_RC[0] != round_RC[1]).any()


def test_an_identity_shows_all_its_images_before_any_comes_again() -> None:
    label_N = labels([12] * 4)
    taken = IdentityOrder(np.tile(label_N, 3)[:48], images_per_identity=4).take(1, 0, 48)
    assert sorted(taken.tolist()) == list(range(48))  # three rounds of four times four: each image once


def test_small_identities_repeat_and_single_images_are_left_out() -> None:
    label_N = labels([1, 2, 3, 1, 8, 9, 9])
    order = IdentityOrder(label_N, images_per_identity=4)
    taken = order.take(0, 0, 20).reshape(5, 4)
    assert sorted(label_N[taken[:, 0]].tolist()) == [1, 2, 4, 5, 6]
    for group in taken.tolist():
        size = min(4, int((label_N == label_N[group[0]]).sum()))
        assert len(set(group)) == size


def test_it_is_a_pure_function_of_seed_epoch_and_position() -> None:
    label_N = labels(SIZES, mixed=True)
    order, other = (IdentityOrder(label_N, seed=5, images_per_identity=4) for _ in range(2))
    whole = order.take(3, 0, 100)
    other.take(1, 17, 60)
    pieces = [other.take(3, begin, min(begin + 13, 100)) for begin in range(0, 100, 13)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert not np.array_equal(order.take(4, 0, 100), whole)
    assert not np.array_equal(IdentityOrder(label_N, seed=6, images_per_identity=4).take(3, 0, 100), whole)
    assert not len(order.take(0, 5, 5))
    with pytest.raises(IndexError):
        order.take(0, 0, 101)


@pytest.mark.parametrize("sort", [True, False])
def test_millions_of_images_need_no_python_objects(sort: bool) -> None:
    count, identities = 1_500_000, 30_000
    label_N = np.random.default_rng(0).integers(identities, size=count)
    label_N = np.sort(label_N) if sort else label_N
    tracemalloc.start()
    start = time.perf_counter()
    order = IdentityOrder(label_N, images_per_identity=4)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < (1e6 if sort else 4 * count + 2e6)
    assert peak < 40 * count
    batch = order.take(0, count // 2, count // 2 + 512)
    assert time.perf_counter() - start < 5
    assert len(np.unique(label_N[batch])) == 128


def faces(**given: object):
    return open_faces(DataSettings(kind="synthetic", identities=12, images=200, size=32, **given))


def test_loader_takes_p_times_k_and_resumes_in_another_number_of_processes() -> None:
    settings = DataSettings(
        kind="synthetic", identities=12, images=192, size=32, shuffle="identity", images_per_identity=4
    )
    opened = open_faces(settings)

    def loader(rank: int, world_size: int, batch_size: int) -> Loader:
        return Loader(opened, batch_size, settings, seed=1, rank=rank, world_size=world_size)

    alone = list(loader(0, 1, 16).batches(0))
    for batch in alone:
        group_PK = batch.label_B.view(-1, 4)
        assert (group_PK == group_PK[:, :1]).all()
    assert len(alone[0].label_B.unique()) == 4

    first, second = (list(loader(rank, 2, 8).batches(0, start=alone[2].position)) for rank in (0, 1))
    for whole, one, two in zip(alone[3:], first, second, strict=True):
        assert np.array_equal(np.concatenate([one.index_B, two.index_B]), whole.index_B)
        assert (one.label_B.view(-1, 4) == one.label_B.view(-1, 4)[:, :1]).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.images_per_identity=3: must divide trainer\.batch_size=16"):
        Loader(faces(), 16, DataSettings(shuffle="identity", images_per_identity=3))
    with pytest.raises(ConfigError, match=r"data\.images_per_identity=1: must be 2 or more"):
        DataSettings(images_per_identity=1)
    with pytest.raises(ConfigError, match="no identity of this data set has two images"):
        IdentityOrder(np.arange(5))
