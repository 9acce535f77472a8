"""Draw the pairs of a verification set: seeded, balanced, in folds that share no identity.

Shape suffixes: N images, C identities, K pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from facerec.errors import UserError, require

Integers = np.ndarray
_USUAL = 300  # genuine pairs of a fold, and as many impostor pairs, as in LFW


class Drawn(NamedTuple):
    """Pairs in the order of the file, fold after fold, in each the genuine ones first.

    Attributes:
        image_K2: int64 positions of the two images.
        issame_K: bool.
    """

    image_K2: Integers
    issame_K: np.ndarray


def draw_pairs(label_N: Integers, *, count: int | None = None, folds: int = 10, seed: int = 0) -> Drawn:
    """Pairs of images, half of them genuine, for `folds` folds of equal size whose people differ.

    Genuine pairs come from as many people as possible: nobody gives a second one while others could still
    give a first. Impostor pairs are of two people drawn evenly. No pair occurs twice.

    Args:
        label_N: the identity of each image, any whole numbers.
        count: pairs in all, a multiple of ``2 * folds``; default: 600 a fold, or as many as there are.
        folds: how many.
        seed: the same seed draws the same pairs from the same labels.

    Raises:
        UserError: there are too few people or images for that; the message says what is possible.
    """
    require(folds >= 1, "--folds", folds, "must be 1 or more")
    require(seed >= 0, "--seed", seed, "must be 0 or more")
    rng = np.random.default_rng(seed)
    order_N = np.argsort(label_N, kind="stable")
    _, start_C, many_C = np.unique(label_N[order_N], return_index=True, return_counts=True)
    people = [_Fold(order_N, start_C[rows], many_C[rows]) for rows in _deal(many_C, folds, rng)]
    most = min(min(fold.genuine, fold.impostor) for fold in people) if people else 0
    if most == 0:
        several = int(np.count_nonzero(many_C >= 2))
        possible = min(several, len(many_C) // 2)
        hint = f"--folds {possible} is possible" if possible else "more images are needed"
        raise UserError(
            f"each of {folds} folds needs two people, one of them with two images or more; there are "
            f"{len(many_C):,} people, {several:,} with two or more images: {hint}"
        )
    if count is None:
        each = min(most, _USUAL)
    else:
        each, rest = divmod(count, 2 * folds)
        limits = f"must be a multiple of {2 * folds}, {2 * folds} to {2 * folds * most}, here"
        require(rest == 0 and 1 <= each <= most, "--count", count, limits)
    pairs = [
        pair_K2 for fold in people for pair_K2 in (fold.draw_same(each, rng), fold.draw_other(each, rng))
    ]
    return Drawn(np.concatenate(pairs), np.tile(np.repeat([True, False], each), folds))


def _deal(many_C: Integers, folds: int, rng: np.random.Generator) -> list[Integers]:
    """Rows of the identities of each fold, dealt there and back from those with many images to few."""
    shuffled_C = rng.permutation(len(many_C))
    row_C = shuffled_C[np.argsort(-many_C[shuffled_C], kind="stable")]
    turn_C = np.arange(len(row_C)) % (2 * folds)
    fold_C = np.minimum(turn_C, 2 * folds - 1 - turn_C)
    return [row_C[fold_C == fold] for fold in range(folds)]


class _Fold:
    """The people of one fold: where the images of each begin in `order_N`, and how many there are."""

    def __init__(self, order_N: Integers, start_C: Integers, many_C: Integers) -> None:
        self._order_N, self._start_C, self._many_C = order_N, start_C, many_C
        self._cap_C = many_C * (many_C - 1) // 2
        self.genuine = int(self._cap_C.sum())
        self.impostor = (int(many_C.sum()) ** 2 - int((many_C**2).sum())) // 2

    def draw_same(self, each: int, rng: np.random.Generator) -> Integers:
        low, high = 0, int(self._cap_C.max())  # how many pairs of a person at most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if np.minimum(self._cap_C, middle).sum() >= each else (middle + 1, high)
        share_C = np.minimum(self._cap_C, high)
        spare = int(share_C.sum()) - each
        share_C[rng.permutation(np.flatnonzero(share_C == high))[:spare]] -= 1
        pairs = []
        for c in rng.permutation(np.flatnonzero(share_C)).tolist():
            number_K = rng.choice(int(self._cap_C[c]), int(share_C[c]), replace=False)
            second_K = ((1 + np.sqrt(1 + 8 * number_K)) / 2).astype(np.int64)
            first_K = number_K - second_K * (second_K - 1) // 2
            pairs.append(self._order_N[self._start_C[c] + np.stack([first_K, second_K], axis=1)])
        return np.concatenate(pairs)

    def draw_other(self, each: int, rng: np.random.Generator) -> Integers:
        """Rejection, at first among people and then among images; an enumeration where most are wanted."""
        if self.impostor <= 4 * each:
            return self._all_others()[rng.choice(self.impostor, each, replace=False)]
        person_P = np.repeat(np.arange(len(self._many_C)), self._many_C)
        found: dict[tuple[int, int], None] = {}
        for attempt in range(1 << 30):
            if attempt < 20:
                person_K2 = rng.integers(0, len(self._many_C), (2 * each, 2))
                within_K2 = (rng.random((2 * each, 2)) * self._many_C[person_K2]).astype(np.int64)
            else:
                row_K2 = rng.integers(0, len(person_P), (8 * each, 2))
                person_K2 = person_P[row_K2]
                within_K2 = row_K2 - (np.cumsum(self._many_C) - self._many_C)[person_K2]
            differ_K = person_K2[:, 0] != person_K2[:, 1]
            image_K2 = self._order_N[(self._start_C[person_K2] + within_K2)[differ_K]]
            for pair in np.sort(image_K2, axis=1).tolist():
                found[pair[0], pair[1]] = None
                if len(found) == each:
                    return np.array(list(found), np.int64)
        raise AssertionError("fewer impostor pairs than counted")

    def _all_others(self) -> Integers:
        images = [
            self._order_N[start : start + many]
            for start, many in zip(self._start_C.tolist(), self._many_C.tolist(), strict=True)
        ]
        pairs = []
        for i, image_K in enumerate(images[:-1]):
            rest_K = np.concatenate(images[i + 1 :])
            pairs.append(np.stack(np.meshgrid(image_K, rest_K, indexing="ij"), axis=2).reshape(-1, 2))
        return np.concatenate(pairs)
