"""Draw the pairs of a verification set: seeded, balanced, in folds that share no identity.

Shape suffixes: N images, C identities, K pairs.
"""

from __future__ import annotations

import numpy as np

from facerec.errors import UserError, counted, require

Integers = np.ndarray
_USUAL = 300  # genuine pairs of a fold, and as many impostor pairs, as in LFW


def draw_pairs(
    label_N: Integers, *, count: int | None = None, folds: int = 10, seed: int = 0
) -> tuple[Integers, np.ndarray]:
    """Draw pairs of images, half of them genuine, for `folds` folds of equal size that share no identity.

    Genuine pairs come from as many identities as possible: none gives a second one while others could still
    give a first. Impostor pairs are of two identities drawn evenly. No pair occurs twice.

    Args:
        label_N: the identity of each image, any integers.
        count: pairs in all, a multiple of ``2 * folds``; default: 600 per fold, or as many as there are.
        folds: their number.
        seed: the same seed draws the same pairs from the same labels.

    Returns:
        image_K2, int64 positions of two images, fold after fold, in each the genuine pairs first; and
        issame_K, bool.

    Raises:
        UserError: there are too few identities or images for that; the message says what is possible.
    """
    require(folds >= 1, "--folds", folds, "must be 1 or more")
    require(seed >= 0, "--seed", seed, "must be 0 or more")
    rng = np.random.default_rng(seed)
    order_N = np.argsort(label_N, kind="stable")
    _, start_C, many_C = np.unique(label_N[order_N], return_index=True, return_counts=True)
    dealt = [_Fold(order_N, start_C[rows], many_C[rows]) for rows in _deal(many_C, folds, rng)]
    most = min(min(fold.genuine, fold.impostor) for fold in dealt)
    if most == 0:
        several = int(np.count_nonzero(many_C >= 2))
        possible = min(several, len(many_C) // 2)
        hint = f"--folds {possible} is possible" if possible else "more images are needed"
        raise UserError(
            f"each of {folds} folds needs two identities, one of them with two images or more; there are "
            f"{counted(len(many_C), 'identity')}, {several:,} with two or more images: {hint}"
        )
    if count is None:
        per_class = min(most, _USUAL)
    else:
        per_class, rest = divmod(count, 2 * folds)
        limits = f"must be a multiple of {2 * folds}, {2 * folds} to {2 * folds * most}, here"
        require(rest == 0 and 1 <= per_class <= most, "--count", count, limits)
    pairs = []
    for fold in dealt:
        pairs += [fold.draw_genuine(per_class, rng), fold.draw_impostors(per_class, rng)]
    return np.concatenate(pairs), np.tile(np.repeat([True, False], per_class), folds)


def _deal(many_C: Integers, folds: int, rng: np.random.Generator) -> list[Integers]:
    """Rows of the identities of each fold, dealt there and back from those with many images to few."""
    shuffled_C = rng.permutation(len(many_C))
    row_C = shuffled_C[np.argsort(-many_C[shuffled_C], kind="stable")]
    turn_C = np.arange(len(row_C)) % (2 * folds)
    fold_C = np.minimum(turn_C, 2 * folds - 1 - turn_C)
    return [row_C[fold_C == fold] for fold in range(folds)]


class _Fold:
    """The identities of one fold: where the images of each begin in `order_N`, and their number."""

    def __init__(self, order_N: Integers, start_C: Integers, many_C: Integers) -> None:
        self._order_N, self._start_C, self._many_C = order_N, start_C, many_C
        self._possible_C = many_C * (many_C - 1) // 2
        self.genuine = int(self._possible_C.sum())
        self.impostor = (int(many_C.sum()) ** 2 - int((many_C**2).sum())) // 2

    def draw_genuine(self, count: int, rng: np.random.Generator) -> Integers:
        low, high = 0, int(self._possible_C.max())  # pairs of one identity at most
        while low < high:
            middle = (low + high) // 2
            enough = np.minimum(self._possible_C, middle).sum() >= count
            low, high = (low, middle) if enough else (middle + 1, high)
        wanted_C = np.minimum(self._possible_C, high)
        spare = int(wanted_C.sum()) - count
        wanted_C[rng.permutation(np.flatnonzero(wanted_C == high))[:spare]] -= 1
        pairs = []
        for c in rng.permutation(np.flatnonzero(wanted_C)).tolist():
            number_K = rng.choice(int(self._possible_C[c]), int(wanted_C[c]), replace=False)
            second_K = ((1 + np.sqrt(1 + 8 * number_K)) / 2).astype(np.int64)
            first_K = number_K - second_K * (second_K - 1) // 2
            pairs.append(self._order_N[self._start_C[c] + np.stack([first_K, second_K], axis=1)])
        return np.concatenate(pairs)

    def draw_impostors(self, count: int, rng: np.random.Generator) -> Integers:
        """Draw by rejection, at first among identities, then among images; enumerate if most are wanted."""
        if self.impostor <= 4 * count:
            return self._all_impostors()[rng.choice(self.impostor, count, replace=False)]
        identity_P = np.repeat(np.arange(len(self._many_C)), self._many_C)
        found: dict[tuple[int, int], None] = {}
        for attempt in range(1 << 30):
            if attempt < 20:
                identity_K2 = rng.integers(0, len(self._many_C), (2 * count, 2))
                within_K2 = (rng.random((2 * count, 2)) * self._many_C[identity_K2]).astype(np.int64)
            else:
                row_K2 = rng.integers(0, len(identity_P), (8 * count, 2))
                identity_K2 = identity_P[row_K2]
                within_K2 = row_K2 - (np.cumsum(self._many_C) - self._many_C)[identity_K2]
            differ_K = identity_K2[:, 0] != identity_K2[:, 1]
            image_K2 = self._order_N[(self._start_C[identity_K2] + within_K2)[differ_K]]
            for pair in np.sort(image_K2, axis=1).tolist():
                found[pair[0], pair[1]] = None
                if len(found) == count:
                    return np.array(list(found), np.int64)
        raise AssertionError("fewer impostor pairs than counted")

    def _all_impostors(self) -> Integers:
        images = [
            self._order_N[start : start + many]
            for start, many in zip(self._start_C.tolist(), self._many_C.tolist(), strict=True)
        ]
        pairs = []
        for i, image_K in enumerate(images[:-1]):
            rest_K = np.concatenate(images[i + 1 :])
            pairs.append(np.stack(np.meshgrid(image_K, rest_K, indexing="ij"), axis=2).reshape(-1, 2))
        return np.concatenate(pairs)
