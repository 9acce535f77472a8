"""The order of an epoch, its division among processes, and every sample's random numbers: pure functions.

Nothing here keeps state or draws from a generator. Which image stands at position p of an epoch follows
from (seed, epoch, p) by arithmetic alone, so an epoch can be entered anywhere, by any number of processes, at
no cost in memory (a stored permutation of WebFace42M takes 170 MB in every process), and it does not change
with the version of NumPy. The random numbers of a sample follow from (seed, epoch, sample), whoever loads it.

Shape suffixes: N positions or samples asked for, K numbers a sample.
"""

from __future__ import annotations

import math
import zlib
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Shuffle = Literal["full", "block", "identity", "none"]

_ROUNDS: Final = 8
_WORD: Final = 2**64 - 1


class Order:
    """The order of the epochs of `count` images.

    Args:
        count: images in the data set.
        seed: any integer.
        shuffle: ``full``: any image anywhere. ``block``: the data set is cut into blocks of neighbours, the
            blocks are shuffled, and the images of `window` blocks at a time are mixed with each other, so a
            disk reads whole blocks. ``none``: as stored. (``identity`` is `identity_sampler.IdentityOrder`.)
        block_size: images in a block.
        window: blocks that are mixed with each other.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        shuffle: Shuffle = "full",
        block_size: int = 1024,
        window: int = 64,
    ) -> None:
        self.count = count
        self.seed = seed
        self.shuffle = shuffle
        self.block_size = block_size
        self.window = window
        self._blocks_of: tuple[int, _Blocks] | None = None

    def take(self, epoch: int, start: int, stop: int) -> Positions:
        """The images (int64) at positions start … stop−1 of an epoch, 0 ≤ start ≤ stop ≤ count."""
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"positions {start} to {stop} of an epoch of {self.count}")
        position_N = np.arange(start, stop, dtype=np.int64)
        if self.shuffle == "none" or not len(position_N):
            return position_N
        if self.shuffle == "full":
            return permute(position_N, self.count, (self.seed, epoch))
        return self._blocks(epoch).take(position_N)

    def to_read(self, epoch: int, start: int, stop: int, *, first: bool = False) -> Positions:
        """For ``block``: what a disk should begin to read when positions start … stop−1 are about to be
        decoded.

        It is the like part of the next window, as it is stored, so that the disk goes through one block after
        the other; with `first` also the whole window that `start` lies in.
        """
        return self._blocks(epoch).to_read(start, stop, first)

    def _blocks(self, epoch: int) -> _Blocks:
        if self._blocks_of is None or self._blocks_of[0] != epoch:
            self._blocks_of = epoch, _Blocks(self.count, self.block_size, self.window, (self.seed, epoch))
        return self._blocks_of[1]


class _Blocks:
    """One epoch's order of blocks; memory for one number a block."""

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


def permute(position_N: Positions, count: int, key: tuple[int, ...]) -> Positions:
    """Images of positions under a pseudo-random permutation of 0 … count−1 that `key` chooses.

    A Feistel network on pairs (x // b, x % b) with a·b just over `count`, whose halves are added modulo a and
    b instead of exclusive-or-ed (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002); the few
    images that fall outside are permuted again until they are inside.
    """
    if count <= 1:
        return np.zeros_like(position_N)
    b = math.isqrt(count - 1) + 1
    a = -(-count // b)
    keys = [_mix(_fold((*key, round_))) for round_ in range(_ROUNDS)]
    image_N = position_N.copy()
    outside = np.arange(len(position_N))
    while len(outside):
        high, low = np.divmod(image_N[outside].astype(np.uint64), np.uint64(b))
        for round_ in range(0, _ROUNDS, 2):
            high = (high + _mix_array(low + np.uint64(keys[round_])) % np.uint64(a)) % np.uint64(a)
            low = (low + _mix_array(high + np.uint64(keys[round_ + 1])) % np.uint64(b)) % np.uint64(b)
        image_N[outside] = (high * np.uint64(b) + low).astype(np.int64)
        outside = outside[image_N[outside] >= count]
    return image_N


def random_words(seed: int, epoch: int, sample_N: Positions, purpose: str) -> npt.NDArray[np.uint64]:
    """64 random bits for each sample, uint64 (N,): a pure function of (seed, epoch, sample, purpose)."""
    key = _fold((seed, epoch, zlib.crc32(purpose.encode())))
    return _mix_array(_mix_array(sample_N.astype(np.uint64)) + np.uint64(key))


def uniform(seed: int, epoch: int, sample_N: Positions, purpose: str, draws: int) -> npt.NDArray[np.float64]:
    """`draws` numbers in [0, 1) for each sample, float64 (N, K): a pure function as `random_words`."""
    word_N = random_words(seed, epoch, sample_N, purpose)
    step_K = np.arange(draws, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix_array(word_N[:, None] + step_K) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mirrored(seed: int, epoch: int, sample_N: Positions) -> npt.NDArray[np.bool_]:
    """Whether each sample is mirrored in this epoch, bool (N,), one half of them."""
    return (random_words(seed, epoch, sample_N, "mirror") & np.uint64(1)).astype(np.bool_)


def count_batches(
    count: int, batch_size: int, *, world_size: int = 1, start: int = 0, drop_last: bool | None = None
) -> int:
    """Batches that remain of an epoch when `start` samples of it are done; the same number in every process.

    A full batch has batch_size·world_size samples, the rest of an epoch is one smaller batch. ``drop_last``:
    True leaves the rest out; False keeps it if it has a sample for every process; None, the default, keeps it
    if it has two for every process, since batch norm has no variance of one.
    """
    full, rest = divmod(count - start, batch_size * world_size)
    needed = {True: math.inf, False: world_size, None: min(2, batch_size) * world_size}[drop_last]
    return full + (0 < rest >= needed)


def share(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of positions start … stop−1 that process `rank` takes, as (begin, end).

    The parts follow each other in the order of the ranks and differ by at most one in size.
    """
    size, larger = divmod(stop - start, world_size)
    begin = start + rank * size + min(rank, larger)
    return begin, begin + size + (rank < larger)


def _fold(numbers: tuple[int, ...]) -> int:
    """One 64-bit word from several integers."""
    word = 0
    for number in numbers:
        word = _mix((word ^ (number & _WORD)) + 0x9E3779B97F4A7C15)
    return word


def _mix(word: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _mix_array(word_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`_mix` of every element; unsigned arrays wrap around silently."""
    word_N = (word_N ^ (word_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word_N = (word_N ^ (word_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word_N ^ (word_N >> np.uint64(31))
