"""P identities × K images a batch, as pair losses need: a pure function of (seed, epoch, position).

Positions come in groups of K, all of one identity; every identity with two images or more has its turn once
a round, in another order each round. Which image stands where follows by arithmetic, as in `order`: any
number of processes can enter an epoch anywhere. Kept are the first image of each identity and, where the
labels are not sorted, an index of the images by identity: a few bytes an image, no Python object.

Shape suffixes: N images or positions, C identities with two images or more, M a group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from facerec.errors import require
from facerec.loading.order import Order, Positions, permute, random_words

_ROUND: Final = -2  # keeps the rounds' permutations apart from those of the other orders


class IdentityOrder(Order):
    """The order of epochs in groups of `images_per_identity` images of one identity.

    An epoch is as long as the data set, but balanced over identities: the images of small ones come more
    often. An identity shows all its images (but a rest of fewer than K) before any comes again; one with
    fewer than K repeats them within its group. Identities with a single image have no pairs and are left
    out. In a batch of P·K images the P identities differ, but for those batches that a round ends in.

    Args:
        label_N: int64 identity of every image, 0 … number of identities − 1.
        seed: any integer.
        images_per_identity: K ≥ 2.

    Raises:
        ConfigError: no identity has two images, or K is less than 2.
    """

    def __init__(
        self, label_N: npt.NDArray[np.int64], *, seed: int = 0, images_per_identity: int = 4
    ) -> None:
        super().__init__(len(label_N), seed=seed, shuffle="identity")
        k = images_per_identity
        require(k >= 2, "data.images_per_identity", k, "must be 2 or more")
        self.images_per_identity = k
        count = np.bincount(label_N)
        first = np.concatenate(([0], np.cumsum(count)[:-1]))
        several = count >= 2
        hint = "no identity of this data set has two images"
        require(bool(several.any()), "data.shuffle", "identity", hint)
        self.count_C, self.first_C = count[several], first[several]
        self.by_identity_N = None if np.all(label_N[1:] >= label_N[:-1]) else _sorted_index(label_N)

    def take(self, epoch: int, start: int, stop: int) -> Positions:
        """The images (int64) at positions start … stop−1 of an epoch, 0 ≤ start ≤ stop ≤ count."""
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"positions {start} to {stop} of an epoch of {self.count}")
        position_N = np.arange(start, stop, dtype=np.int64)
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


def _sorted_index(label_N: npt.NDArray[np.int64]) -> npt.NDArray[np.integer]:
    """Images in the order of their identities, in the smallest integers that hold them."""
    index_N = np.argsort(label_N, kind="stable")
    return index_N.astype(np.int32) if len(index_N) <= np.iinfo(np.int32).max else index_N


def _below(word_M: npt.NDArray[np.uint64], limit_M: npt.NDArray[np.int64]) -> Positions:
    return (word_M % limit_M.astype(np.uint64)).astype(np.int64)
