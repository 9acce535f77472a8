"""Deal listed pairs into folds for a cross-validation: as many of each kind in each, and no identity in two.

Shape suffixes: N pairs; 2N their images, rows 2i and 2i + 1 being pair i.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from facerec.errors import require

log = logging.getLogger(__name__)

_USUAL = 10
_UNEVEN = 1.5  # times the mean size: a larger fold says that the identities cannot be dealt evenly


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
        seed: of the order in which pairs are dealt.

    Raises:
        ConfigError: there are fewer pairs of a kind than `folds`.
    """
    rarer = int(min(same_N.sum(), (~same_N).sum()))
    if folds is None and rarer < 2:
        log.warning("pairs kept in their order: two of each kind are needed to deal them into folds")
        return None
    count = min(_USUAL, rarer) if folds is None else folds
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
