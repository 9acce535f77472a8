"""Random permutations and numbers as pure functions of a seed and a position (counter-based generators).

Nothing here keeps state, and nothing changes with the version of NumPy.

Shape suffixes: N positions or samples asked for, K numbers per sample.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

_ROUNDS: Final = 8
_WORD: Final = 2**64 - 1


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
