"""The order of an epoch and its division among ranks: pure functions of (seed, epoch, position).

Which image stands at position p of an epoch follows by arithmetic alone, so an epoch can be entered anywhere,
by any number of ranks, at no cost in memory (a stored permutation of WebFace42M takes 170 MB per process).

Shape suffixes: N images or positions, C identities with two images or more, M groups of images of one, S
sources of a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from facerec.errors import require
from facerec.randomness import Positions, permute, random_words

Shuffle = Literal["full", "block", "identity", "none"]

_ROUND: Final = -2  # keeps the permutations of identities apart from those of the other orders
_MIX: Final = -3  # likewise
_PERIOD: Final = 1024  # positions of a mixture that hold the sources in their proportions


@dataclass(eq=False)
class Order:
    """The order of the epochs of `count` images.

    Args:
        count: images in the data set.
        seed: any integer.
        shuffle: ``full``: any image anywhere. ``block``: the data set is cut into blocks of `block_size`
            neighbours, the blocks are shuffled, and the images of `window` blocks at a time are mixed with
            each other, so that a disk reads whole blocks. ``none``: as stored. ``identity`` is
            `IdentityOrder`.
    """

    count: int
    _: KW_ONLY
    seed: int = 0
    shuffle: Shuffle = "full"
    block_size: int = 1024
    window: int = 64
    _blocks_of: tuple[int, _Blocks] | None = field(default=None, init=False)

    def take(self, epoch: int, start: int, stop: int) -> Positions:
        """The images (int64) at positions start … stop−1 of an epoch, 0 ≤ start ≤ stop ≤ count."""
        position_N = self._positions(start, stop)
        if self.shuffle == "none" or not len(position_N):
            return position_N
        if self.shuffle == "full":
            return permute(position_N, self.count, (self.seed, epoch))
        return self._blocks(epoch).take(position_N)

    def _positions(self, start: int, stop: int) -> Positions:
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"positions {start} to {stop} of an epoch of {self.count}")
        return np.arange(start, stop, dtype=np.int64)

    def to_read(self, epoch: int, start: int, stop: int, *, first: bool = False) -> Positions:
        """For ``block``: the images a disk should begin to read before positions start … stop−1 are decoded.

        They are the like part of the next window, as it is stored, so that the disk goes through one block
        after the other; with `first` also all of the window that `start` lies in.
        """
        return self._blocks(epoch).to_read(start, stop, first)

    def _blocks(self, epoch: int) -> _Blocks:
        if self._blocks_of is None or self._blocks_of[0] != epoch:
            self._blocks_of = epoch, _Blocks(self.count, self.block_size, self.window, (self.seed, epoch))
        return self._blocks_of[1]


class _Blocks:
    """One epoch's order of blocks, in memory for a few numbers per block."""

    def __init__(self, count: int, block_size: int, window: int, key: tuple[int, ...]) -> None:
        blocks = -(-count // block_size)
        order = permute(np.arange(blocks, dtype=np.int64), blocks, (*key, -1))
        lengths = np.full(blocks, block_size, np.int64)
        lengths[order == blocks - 1] = count - (blocks - 1) * block_size
        self.first = order * block_size  # first image of the block at each place of the order
        self.length = lengths
        self.begin = np.concatenate(([0], np.cumsum(lengths)))  # position where each place begins
        self.window = window
        self.window_begin = np.append(self.begin[:-1:window], count)
        self.key = key

    def take(self, position_N: Positions) -> Positions:
        out_N = np.empty_like(position_N)
        windows = np.searchsorted(self.window_begin, position_N, side="right") - 1
        for window in range(windows[0], windows[-1] + 1):
            low, high = self.window_begin[window], self.window_begin[window + 1]
            mine = windows == window
            mixed = low + permute(position_N[mine] - low, int(high - low), (*self.key, window))
            place = np.searchsorted(self.begin, mixed, side="right") - 1
            out_N[mine] = self.first[place] + mixed - self.begin[place]
        return out_N

    def to_read(self, start: int, stop: int, first: bool) -> Positions:
        begin = self.window_begin
        window = int(np.searchsorted(begin, start, side="right")) - 1
        parts = [self.stored(window)] if first else []
        while window < len(begin) - 1 and begin[window] < stop:
            # A window's last stretch takes all that remains: the next window may be the longer one.
            low = max(start, begin[window]) - begin[window]
            high = stop - begin[window] if stop < begin[window + 1] else None
            parts.append(self.stored(window + 1)[low:high])
            window += 1
        return np.concatenate(parts)

    def stored(self, window: int) -> Positions:
        """The images of a window as they are stored; none for the window behind the last."""
        places = slice(window * self.window, (window + 1) * self.window)
        order = np.argsort(self.first[places])
        first_B, length_B = self.first[places][order], self.length[places][order]
        begin_B = np.cumsum(length_B) - length_B
        return np.arange(length_B.sum()) + np.repeat(first_B - begin_B, length_B)


class IdentityOrder(Order):
    """Epochs in groups of K images of one identity, as pair losses need: P identities × K images per batch.

    Every identity with two images or more has its turn once per round, in another order each round. An epoch
    is as long as the data set, but balanced over identities: the images of small ones come more often. An
    identity shows all its images (but a rest of fewer than K) before any comes again; one with fewer than K
    repeats them within its group. In a batch of P·K images the P identities differ, but for those batches
    that a round ends in.

    Args:
        label_N: int64 identity of every image, 0 … number of identities − 1.
        seed: any integer.
        images_per_identity: K ≥ 2.

    Raises:
        ConfigError: no identity has two images.
    """

    def __init__(
        self, label_N: npt.NDArray[np.int64], *, seed: int = 0, images_per_identity: int = 4
    ) -> None:
        super().__init__(len(label_N), seed=seed, shuffle="identity")
        k = images_per_identity
        self.images_per_identity = k
        count = np.bincount(label_N)
        first = np.concatenate(([0], np.cumsum(count)[:-1]))
        several = count >= 2
        hint = "no identity of this data set has two images"
        require(bool(several.any()), "data.shuffle", "identity", hint)
        self.count_C, self.first_C = count[several], first[several]
        self.by_identity_N = None  # images in the order of their identities, where they are not stored so
        if (label_N[1:] < label_N[:-1]).any():
            index_N = np.argsort(label_N, kind="stable")
            small = len(index_N) <= np.iinfo(np.int32).max
            self.by_identity_N = index_N.astype(np.int32) if small else index_N

    def take(self, epoch: int, start: int, stop: int) -> Positions:
        position_N = self._positions(start, stop)
        if not len(position_N):
            return position_N
        k = self.images_per_identity
        group_M, of_group_N = np.unique(position_N // k, return_inverse=True)
        round_M, place_M = np.divmod(group_M, len(self.count_C))
        identity_M = np.empty_like(place_M)
        for one in np.unique(round_M).tolist():
            mine = round_M == one
            identity_M[mine] = permute(place_M[mine], len(self.count_C), (self.seed, epoch, _ROUND, one))
        images_M = self.count_C[identity_M]
        # Each cycle through an identity's images has an order of its own: x → stride·x + shift modulo their
        # number, a permutation because the stride has no divisor in common with it.
        cycle_M, turn_M = np.divmod(round_M, np.maximum(images_M // k, 1))
        sample_M = cycle_M * len(self.count_C) + identity_M
        shift_M = _below(random_words(self.seed, epoch, sample_M, "shift"), images_M)
        stride_M = 1 + _below(random_words(self.seed, epoch, sample_M, "stride"), images_M)
        while (clash_M := np.gcd(stride_M, images_M) != 1).any():
            stride_M = np.where(clash_M, stride_M % images_M + 1, stride_M)
        nth_N = turn_M[of_group_N] * k + position_N % k
        within_N = (stride_M[of_group_N] * nth_N + shift_M[of_group_N]) % images_M[of_group_N]
        image_N = self.first_C[identity_M[of_group_N]] + within_N
        return image_N if self.by_identity_N is None else self.by_identity_N[image_N].astype(np.int64)


class MixtureOrder(Order):
    """Epochs of several sources, of each a fixed fraction of the positions.

    An epoch has as many positions as the sources have images. Every `_PERIOD` of them (the last ones with the
    rest) hold each source in its proportion, to an image, in a random order. A source goes through its images
    in epochs of its own, which go on through those of the mixture: none comes again before all have come.

    Args:
        counts: the number of images of each source; they follow each other, and so are numbered.
        weights: the fraction of each source, in any unit.
        how: ``seed``, ``shuffle``, ``block_size`` and ``window`` of `Order`, within each source.

    Raises:
        ConfigError: a source would give no image of an epoch; or there are more than 32, of which the largest
            might have no room beside the roundings of the others.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], *, seed: int = 0, **how: Any) -> None:
        super().__init__(sum(counts), seed=seed, **how)
        require(len(counts) <= 32, "data.sources", f"{len(counts)} of them", "may be 32 with data.weights")
        self.sources = [Order(count, seed=seed + (k << 32), **how) for k, count in enumerate(counts)]
        self.first_S = np.concatenate(([0], np.cumsum(counts)[:-1]))
        drawn_S = np.array([int(self.count * weight / math.fsum(weights)) for weight in weights])
        self.largest = int(np.argmax(drawn_S))  # gets what rounding leaves
        drawn_S[self.largest] += self.count - drawn_S.sum()
        hint = f"give a source none of the {self.count:,} images of an epoch; raise the smallest"
        require(bool((drawn_S > 0).all()), "data.weights", list(weights), hint)
        self.drawn_S = drawn_S

    def take(self, epoch: int, start: int, stop: int) -> Positions:
        out_N = self._positions(start, stop)
        source_N, begin_S = self._sources(epoch, start, stop)
        for k, order in enumerate(self.sources):
            mine = source_N == k
            drawn = self._drawn(k, epoch, begin_S.item(k), int(mine.sum()))
            parts = [order.take(*part) for part in drawn]
            out_N[mine] = self.first_S[k] + np.concatenate([out_N[:0], *parts])
        return out_N

    def to_read(self, epoch: int, start: int, stop: int, *, first: bool = False) -> Positions:
        source_N, begin_S = self._sources(epoch, start, stop)
        parts = []
        for k, order in enumerate(self.sources):
            for part in self._drawn(k, epoch, begin_S.item(k), int((source_N == k).sum())):
                parts.append(self.first_S[k] + order.to_read(*part, first=first or part[1] == 0))
        return np.concatenate(parts)

    def _before(self, position: int) -> Positions:
        """How many of an epoch's first positions belong to each source, int64 (S,)."""
        before_S = self.drawn_S * position // self.count
        before_S[self.largest] += position - before_S.sum()
        return before_S

    def _sources(self, epoch: int, start: int, stop: int) -> tuple[Positions, Positions]:
        """The source of each position (N,), and how many of each come before `start` (S,)."""
        last = max(0, self.count // _PERIOD - 1)
        periods = range(min(start // _PERIOD, last), min(max(stop - 1, 0) // _PERIOD, last) + 1)
        parts = []
        for period in periods:
            low, high = period * _PERIOD, self.count if period == last else (period + 1) * _PERIOD
            sorted_N = np.repeat(np.arange(len(self.sources)), self._before(high) - self._before(low))
            place_N = np.arange(high - low, dtype=np.int64)
            parts.append(sorted_N[permute(place_N, high - low, (self.seed, epoch, _MIX, period))])
        begin, source_N = periods[0] * _PERIOD, np.concatenate(parts)
        passed_S = np.bincount(source_N[: start - begin], minlength=len(self.sources))
        return source_N[start - begin : stop - begin], self._before(begin) + passed_S

    def _drawn(self, source: int, epoch: int, begin: int, number: int) -> Iterator[tuple[int, int, int]]:
        """Yield epoch, start and stop of the source's own order, for draws from `begin` of an epoch on."""
        count = self.sources[source].count
        own, at = divmod(epoch * self.drawn_S.item(source) + begin, count)
        while number:
            taken = min(number, count - at)
            yield own, at, at + taken
            own, at, number = own + 1, 0, number - taken


def _below(word_M: npt.NDArray[np.uint64], limit_M: npt.NDArray[np.int64]) -> Positions:
    return (word_M % limit_M.astype(np.uint64)).astype(np.int64)


def mirrored(seed: int, epoch: int, sample_N: Positions) -> npt.NDArray[np.bool_]:
    """Mark the half of the samples that is mirrored in this epoch, bool (N,)."""
    return (random_words(seed, epoch, sample_N, "mirror") & np.uint64(1)).astype(np.bool_)


def count_batches(
    count: int, batch_size: int, *, world_size: int = 1, start: int = 0, drop_last: bool | None = None
) -> int:
    """Batches that remain of an epoch when `start` samples of it are done; the same number on every rank.

    A full batch has batch_size·world_size samples, the rest of an epoch is one smaller batch. ``drop_last``:
    True leaves the rest out; False keeps it if it has a sample for every rank; None, the default, keeps it if
    it has two for every rank, since batch norm has no variance of one.
    """
    full, rest = divmod(count - start, batch_size * world_size)
    needed = {True: math.inf, False: world_size, None: min(2, batch_size) * world_size}[drop_last]
    return full + (0 < rest >= needed)


def rank_part(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """Begin and end of the part of positions start … stop−1 that `rank` takes.

    The parts follow each other in the order of the ranks and differ by at most one in size.
    """
    size, larger = divmod(stop - start, world_size)
    begin = start + rank * size + min(rank, larger)
    return begin, begin + size + (rank < larger)
