"""Orders: every record once, the same whatever the processes, entered anywhere, blocks read together."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from facerec.loading.order import Order, count_batches, mirrored, rank_part
from facerec.randomness import permute, random_words, uniform

COUNTS = st.integers(1, 3000)

# Positions 500 to 505 of epoch 7 of 1000 images under seed 42, as this project first computed them.
FULL = [938, 669, 617, 59, 204, 17]
BLOCK = [899, 519, 792, 371, 378, 511]
MIRRORED = [True, False, False, False, False, True, False, True]


@given(count=COUNTS, seed=st.integers(-5, 2**63), epoch=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_permutation_takes_every_position_once(count: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(count), count, (seed, epoch))
    assert np.array_equal(np.sort(image), np.arange(count))


@given(count=COUNTS, block_size=st.integers(1, 200), window=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_block_shuffle_takes_every_record_once(count: int, block_size: int, window: int, seed: int) -> None:
    order = Order(count, seed=seed, shuffle="block", block_size=block_size, window=window)
    assert np.array_equal(np.sort(order.take(3, 0, count)), np.arange(count))


@pytest.mark.parametrize("shuffle", ["full", "block", "none"])
@given(data=st.data(), count=COUNTS)
@settings(max_examples=50, deadline=None)
def test_a_piece_of_an_order_does_not_depend_on_where_it_is_entered(
    shuffle: str, data: st.DataObject, count: int
) -> None:
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    order = Order(count, seed=5, shuffle=shuffle, block_size=50, window=7)
    other = Order(count, seed=5, shuffle=shuffle, block_size=50, window=7)
    assert np.array_equal(order.take(2, start, stop), other.take(2, 0, count)[start:stop])


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_orders_differ_between_epochs_and_seeds(shuffle: str) -> None:
    orders = [
        tuple(Order(5000, seed=seed, shuffle=shuffle, block_size=100, window=8).take(epoch, 0, 5000))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_no_shuffle_is_the_stored_order() -> None:
    assert np.array_equal(Order(10, shuffle="none").take(4, 2, 7), [2, 3, 4, 5, 6])


def test_positions_beyond_an_epoch_are_refused() -> None:
    with pytest.raises(IndexError, match="positions 5 to 11 of an epoch of 10"):
        Order(10).take(0, 5, 11)


@pytest.mark.parametrize("count", [2, 3, 5, 7, 24])
def test_every_record_comes_to_every_position_equally_often(count: int) -> None:
    trials = 1000
    table = np.zeros((count, count))
    for seed in range(trials):
        table[np.arange(count), permute(np.arange(count), count, (seed, 0))] += 1
    freedom = (count - 1) ** 2
    chi_square = ((table - trials / count) ** 2 / (trials / count)).sum()
    assert stats.chi2.sf(chi_square, freedom) > 1e-4


def test_neighbours_are_torn_apart() -> None:
    image = permute(np.arange(100_000), 100_000, (1, 0))
    correlation = np.corrcoef(image[:-1], image[1:])[0, 1]
    assert abs(correlation) < 0.01
    assert abs(np.corrcoef(image, np.arange(100_000))[0, 1]) < 0.01
    runs = np.diff(image) == 1
    assert runs.sum() < 8  # one is expected


def test_a_batch_of_block_shuffle_draws_on_many_blocks_and_only_on_its_window() -> None:
    order = Order(100_000, seed=1, shuffle="block", block_size=500, window=20)
    for start in (0, 9_500, 50_000):
        batch = order.take(0, start, start + 256)
        window = {
            int(i) // 500 for i in order.take(0, start - start % 10_000, start - start % 10_000 + 10_000)
        }
        assert len(window) == 20
        assert {int(i) // 500 for i in batch} <= window
        assert len({int(i) // 500 for i in batch}) >= 18


@pytest.mark.parametrize("count", [10_250, 10_000, 400, 1])
def test_block_shuffle_reads_every_record_once_and_block_by_block_before_it_is_needed(count: int) -> None:
    order = Order(count, seed=1, shuffle="block", block_size=500, window=4)
    read: list[int] = []
    have: set[int] = set()
    for start in range(0, count, 128):
        stop = min(start + 128, count)
        ahead = order.to_read(3, start, stop, first=start == 0)
        read.extend(ahead.tolist())
        have.update(ahead.tolist())
        assert set(order.take(3, start, stop).tolist()) <= have
    assert sorted(read) == list(range(count))
    assert (np.diff(read) != 1).sum() <= count // 500


def test_block_shuffle_entered_half_way_reads_the_window_it_is_in() -> None:
    order = Order(10_000, seed=1, shuffle="block", block_size=500, window=4)
    ahead = order.to_read(3, 5_000, 5_100, first=True)
    assert set(order.take(3, 4_000, 6_000).tolist()) <= set(ahead.tolist())
    assert len(ahead) == 2_000 + 100


def test_the_order_of_the_largest_data_set_costs_neither_time_nor_memory() -> None:
    count = 42_474_557
    tracemalloc.start()
    started = time.perf_counter()
    for shuffle in ("full", "block"):
        order = Order(count, seed=1, shuffle=shuffle)
        piece = order.take(3, 40_000_000, 40_000_512)
        assert len(np.unique(piece)) == 512
        assert piece.min() >= 0
        assert piece.max() < count
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 8_000_000


@given(
    count=st.integers(1, 500),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 9),
    data=st.data(),
    drop_last=st.sampled_from([True, False, None]),
)
@settings(max_examples=300, deadline=None)
def test_processes_take_an_epoch_without_overlap_or_loss(
    count: int, batch_size: int, world_size: int, data: st.DataObject, drop_last: bool | None
) -> None:
    start = data.draw(st.integers(0, count))
    batches = count_batches(count, batch_size, world_size=world_size, start=start, drop_last=drop_last)
    taken: list[int] = []
    for k in range(batches):
        begin = start + k * batch_size * world_size
        end = min(begin + batch_size * world_size, count)
        parts = [rank_part(begin, end, rank, world_size) for rank in range(world_size)]
        sizes = [b - a for a, b in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
        for a, b in parts:
            taken.extend(range(a, b))
    assert taken == list(range(start, start + len(taken)))
    left = count - start - len(taken)
    least = {True: batch_size, False: 1, None: min(2, batch_size)}[drop_last]
    assert left < least * world_size


def test_the_rest_is_kept_only_where_batch_norm_allows_it() -> None:
    assert count_batches(101, 10) == 10
    assert count_batches(102, 10) == 11
    assert count_batches(101, 10, drop_last=False) == 11
    assert count_batches(109, 10, drop_last=True) == 10
    assert count_batches(5, 1) == 5
    assert count_batches(80 + 7, 10, world_size=4) == 2
    assert count_batches(80 + 8, 10, world_size=4) == 3


def test_mirroring_is_a_fair_coin_of_the_sample_alone() -> None:
    samples = np.arange(100_000)
    coin = mirrored(3, 5, samples)
    assert 0.49 < coin.mean() < 0.51
    assert np.array_equal(mirrored(3, 5, samples[::-7]), coin[::-7])
    for other in (mirrored(4, 5, samples), mirrored(3, 6, samples), np.roll(coin, 1)):
        assert 0.49 < (coin == other).mean() < 0.51


def test_random_numbers_of_one_purpose_say_nothing_of_another() -> None:
    samples = np.arange(50_000)
    crop, blur = (uniform(1, 0, samples, purpose, 2) for purpose in ("crop", "blur"))
    assert crop.shape == (50_000, 2)
    assert crop.min() >= 0
    assert crop.max() < 1
    for a, b in ((crop[:, 0], crop[:, 1]), (crop[:, 0], blur[:, 0]), (crop[:-1, 0], crop[1:, 0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert stats.kstest(crop[:, 0], "uniform").pvalue > 1e-4
    assert len(np.unique(random_words(1, 0, samples, "crop"))) == 50_000


def test_orders_stay_what_they_are() -> None:
    """Resuming a run must give the order it began with, whatever the version of facerec or NumPy."""
    assert Order(1000, seed=42).take(7, 500, 506).tolist() == FULL
    block = Order(1000, seed=42, shuffle="block", block_size=10, window=5)
    assert block.take(7, 500, 506).tolist() == BLOCK
    assert mirrored(42, 7, np.arange(8)).tolist() == MIRRORED
