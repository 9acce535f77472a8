"""The pairs of a verification set in folds that share no identity: drawn, or listed ones dealt into them.

Shape suffixes: N listed pairs, and 2N their images, rows 2i and 2i + 1 being pair i; in drawing N images, C
identities, K pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from facerec.errors import UserError, counted, require

log = logging.getLogger(__name__)

_FOLDS = 10
_UNEVEN = 1.5  # times the mean size: a larger fold says that the identities cannot be dealt evenly
_PER_FOLD = 300  # genuine pairs of a drawn fold, and as many impostor pairs, as in LFW


def deal(
    same_N: np.ndarray, identity_2N: Sequence[str] | None, *, folds: int | None = None, seed: int = 0
) -> np.ndarray | None:
    """The fold of each pair, int64 (N,): both kinds in each, and no identity in two where the pairs allow it.

    They do not where impostor pairs link most identities to each other; this is logged, with the number of
    folds that would do, and identities are then in several.

    Args:
        same_N: True for genuine pairs.
        identity_2N: names of the images' identities; None: not known.
        folds: their number; None: ten, or as many as there are pairs of the rarer kind. Of fewer than two
            pairs of a kind there are no such folds, and the result is None.
        seed: of the order in which pairs are dealt, modulo 2^32.

    Raises:
        ConfigError: there are fewer pairs of a kind than `folds`, or the seed is negative.
    """
    require(seed >= 0, "--seed", seed, "must be 0 or more")
    seed %= 1 << 32  # the most that scikit-learn takes
    rarer = int(min(same_N.sum(), (~same_N).sum()))
    if folds is None and rarer < 2:
        log.warning("pairs kept in their order: two of each kind are needed to deal them into folds")
        return None
    count = min(_FOLDS, rarer) if folds is None else folds
    limits = f"must be from 2 to the number of pairs of the rarer kind, here {rarer}"
    require(2 <= count <= rarer, "--folds", count, limits)
    if identity_2N is not None:
        group_N = _linked(identity_2N)
        options = ((many, _disjoint(same_N, group_N, many, seed)) for many in range(count, 1, -1))
        possible, fold_N = next((one for one in options if one[1] is not None), (0, None))
        if possible == count:
            return fold_N
        hint = f"--folds {possible} keeps them apart" if possible else "no number of folds keeps them apart"
        largest = np.bincount(group_N).max() / len(group_N)
        log.warning(
            "identities are in several folds: impostor pairs link %.0f %% of the pairs to each other; %s",
            *(100 * largest, hint),
        )
    dealer = StratifiedKFold(count, shuffle=True, random_state=seed)
    return _numbers(len(same_N), dealer.split(same_N, same_N))


def balance(fold_N: np.ndarray, same_N: np.ndarray, identity_2N: Sequence[str] | np.ndarray | None) -> str:
    """One line: the pairs of each kind in the folds, and whether an identity is in several."""
    genuine_F, all_F = np.bincount(fold_N, same_N).astype(int), np.bincount(fold_N)
    kinds = [_range(count_F) for count_F in (genuine_F, all_F - genuine_F)]
    line = f"{len(all_F)} folds, each of {kinds[0]} genuine and {kinds[1]} impostor pairs"
    one_kind = int(((genuine_F == 0) | (genuine_F == all_F)).sum())
    if one_kind and same_N.any() and not same_N.all():
        line += f"; {one_kind} of them hold one kind only, so that accuracy will say little"
    if identity_2N is not None:
        seen = np.unique(np.stack([np.asarray(identity_2N), np.repeat(fold_N, 2).astype(str)]), axis=1)[0]
        several = int((np.unique(seen, return_counts=True)[1] > 1).sum())
        who = "identity is" if several == 1 else "identities are"
        line += f"; {several:,} {who} in several" if several else "; no identity is in two"
    return line


def _range(count_F: np.ndarray) -> str:
    low, high = int(count_F.min()), int(count_F.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _linked(identity_2N: Sequence[str]) -> np.ndarray:
    """The number of the group of each pair: identities that pairs link, directly or through others."""
    number_2N = np.unique(np.asarray(identity_2N), return_inverse=True)[1].reshape(-1)
    first_N, second_N = number_2N[0::2], number_2N[1::2]
    size = int(number_2N.max()) + 1
    links = coo_array((np.ones(len(first_N)), (first_N, second_N)), shape=(size, size))
    group_N: np.ndarray = connected_components(links, directed=False)[1][first_N]
    return group_N


def _disjoint(same_N: np.ndarray, group_N: np.ndarray, folds: int, seed: int) -> np.ndarray | None:
    """Folds that divide no group; None where one would lack a kind, or be too large."""
    if len(np.unique(group_N)) < folds:
        return None
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_N = _numbers(len(same_N), dealer.split(same_N, same_N, group_N))
    genuine_F, all_F = np.bincount(fold_N, same_N, folds), np.bincount(fold_N, minlength=folds)
    even = all_F.max() <= _UNEVEN * len(same_N) / folds
    return fold_N if even and ((genuine_F > 0) & (genuine_F < all_F)).all() else None


def _numbers(pairs: int, splits: object) -> np.ndarray:
    fold_N = np.zeros(pairs, np.int64)
    for fold, (_, rows) in enumerate(splits):  # type: ignore[arg-type, var-annotated]
        fold_N[rows] = fold
    return fold_N


# Drawn pairs -----------------------------------------------------------------------------------------------


def draw_pairs(
    label_N: np.ndarray, *, count: int | None = None, folds: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
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
    dealt = []
    if folds <= len(many_C):
        rows_F = _deal_identities(many_C, folds, rng)
        dealt = [_Fold(order_N, start_C[rows], many_C[rows]) for rows in rows_F]
    most = min((min(fold.genuine, fold.impostor) for fold in dealt), default=0)
    if most == 0:
        several = int(np.count_nonzero(many_C >= 2))
        possible = min(several, len(many_C) // 2)
        hint = f"--folds {possible} is possible" if possible else "more images are needed"
        raise UserError(
            f"each of {folds} folds needs two identities, one of them with two images or more; there are "
            f"{counted(len(many_C), 'identity')}, {several:,} with two or more images: {hint}"
        )
    if count is None:
        per_class = min(most, _PER_FOLD)
    else:
        per_class, rest = divmod(count, 2 * folds)
        limits = f"must be a multiple of {2 * folds}, {2 * folds} to {2 * folds * most}, here"
        require(rest == 0 and 1 <= per_class <= most, "--count", count, limits)
    pairs = []
    for fold in dealt:
        pairs += [fold.draw_genuine(per_class, rng), fold.draw_impostors(per_class, rng)]
    return np.concatenate(pairs), np.tile(np.repeat([True, False], per_class), folds)


def _deal_identities(many_C: np.ndarray, folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of the identities of each fold, dealt there and back from those with many images to few."""
    shuffled_C = rng.permutation(len(many_C))
    row_C = shuffled_C[np.argsort(-many_C[shuffled_C], kind="stable")]
    turn_C = np.arange(len(row_C)) % (2 * folds)
    fold_C = np.minimum(turn_C, 2 * folds - 1 - turn_C)
    return [row_C[fold_C == fold] for fold in range(folds)]


class _Fold:
    """The identities of one fold: where the images of each begin in `order_N`, and their number."""

    def __init__(self, order_N: np.ndarray, start_C: np.ndarray, many_C: np.ndarray) -> None:
        self._order_N, self._start_C, self._many_C = order_N, start_C, many_C
        self._possible_C = many_C * (many_C - 1) // 2
        self.genuine = int(self._possible_C.sum())
        self.impostor = (int(many_C.sum()) ** 2 - int((many_C**2).sum())) // 2

    def draw_genuine(self, count: int, rng: np.random.Generator) -> np.ndarray:
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

    def draw_impostors(self, count: int, rng: np.random.Generator) -> np.ndarray:
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

    def _all_impostors(self) -> np.ndarray:
        images = [
            self._order_N[start : start + many]
            for start, many in zip(self._start_C.tolist(), self._many_C.tolist(), strict=True)
        ]
        pairs = []
        for i, image_K in enumerate(images[:-1]):
            rest_K = np.concatenate(images[i + 1 :])
            pairs.append(np.stack(np.meshgrid(image_K, rest_K, indexing="ij"), axis=2).reshape(-1, 2))
        return np.concatenate(pairs)
