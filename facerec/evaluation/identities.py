"""Robust centres of identities, by the embeddings of their images, and pairs of identities that are alike.

A search goes block by block: a million centres of 512 numbers take 2 GB, and a block of cosines more.

Shape suffixes: N images of one identity or of a set, C identities, G those of another set, D embedding size,
R embedded images (rows of the file), K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import UserError
from facerec.evaluation.embedding_files import EmbeddedImages, embed_rows
from facerec.evaluation.statistics.search import BLOCK, cosine_blocks, unit
from facerec.images.images import LabelledImages
from facerec.models.model import Model
from facerec.progress import Bar

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BY_CHANCE: Final = 0.01  # identities per identity that are wrongly taken for another, or one of another set
_SEEDS: Final = 512  # images of an identity that a centre is started from
_ROUNDS: Final = 10
_DRAWN: Final = 3000  # identities of a set whose cosines stand for those of all
_FEWEST: Final = 20  # cosines above a quantile that it is read from


def by_identity(
    faces: LabelledImages, embedded: EmbeddedImages, title: str = ""
) -> Iterator[tuple[int, Ints]]:
    """Yield each identity that has embedded images, with their rows."""
    label_R = np.asarray(faces.label_N)[embedded.position_R]
    order_R = np.argsort(label_R, kind="stable")
    begins = np.flatnonzero(np.diff(label_R[order_R], prepend=-1))
    with Bar(total=len(begins), desc=title, unit=" identities", delay=0.5) as bar:
        for rows in np.split(order_R, begins[1:]):
            yield int(label_R[rows[0]]), rows
            bar.update()


class Centre(NamedTuple):
    """The centre of the images of an identity that agree.

    Attributes:
        sum_D: sum of the unit embeddings of the core; its direction is the centre.
        core_N: True for the images that the centre is made of.
        cosine_N: of each image with the centre of the core without this image; of an only image 1.
    """

    sum_D: Floats
    core_N: Bools
    cosine_N: Floats


def robust_centre(unit_ND: Floats, least: float | None = None) -> Centre:
    """The centre of the half of the images, rounded up, that lies closest together.

    It starts from the image whose nearest half is nearest, and goes on with the half nearest to the mean
    until that half stays the same (a trimmed mean; Rousseeuw's least trimmed squares on the sphere). Wrong
    images of several people do not move it, even where they are half of all, as long as they are less alike.

    Args:
        unit_ND: unit embeddings, N ≥ 1. Of one or two images all are the core.
        least: then the core is widened to all images with at least this cosine, until it stays the same.
    """
    count = len(unit_ND)
    core_N = np.ones(count, np.bool_)
    if count > 2:
        half = (count + 1) // 2
        seed_SD = unit_ND[:: -(-count // _SEEDS)]
        near_SH = np.partition(seed_SD @ unit_ND.T, count - half, axis=1)[:, count - half :]
        sum_D = seed_SD[near_SH.sum(1).argmax()]
        for _ in range(_ROUNDS):
            before_N, core_N = core_N, np.zeros(count, np.bool_)
            core_N[np.argsort(-(unit_ND @ sum_D), kind="stable")[:half]] = True
            if (core_N == before_N).all():
                break
            sum_D = unit_ND[core_N].sum(0)
    for _ in range(_ROUNDS if count > 2 else 0):
        if least is None:
            break
        wider_N = cosines_without(unit_ND, core_N) >= least
        if wider_N.sum() < 2 or (wider_N == core_N).all():
            break
        core_N = wider_N
    return Centre(unit_ND[core_N].sum(0), core_N, cosines_without(unit_ND, core_N))


def cosines_without(unit_ND: Floats, core_N: Bools) -> Floats:
    """Cosine of each image with the mean of the core without this image; 1 where none is left.

    So an image is judged by the others alone: small identities do not look better than they are.
    """
    sum_D = unit_ND[core_N].sum(0)
    product_N = unit_ND @ sum_D - core_N
    square_N = sum_D @ sum_D - core_N * (2 * product_N + 1)  # |S − x|² = |S|² − 2 x·S + 1
    alone_N = core_N & (core_N.sum() == 1)
    cosine_N = product_N / np.sqrt(np.maximum(square_N, 1e-12))
    return np.where(alone_N, 1, np.clip(cosine_N, -1, 1)).astype(np.float32)


def halves_cosine(unit_ND: Floats) -> float:
    """Cosine between the centres of every other image and of the rest: of one person, of whom nothing else is
    known. Of fewer than two images NaN."""
    if len(unit_ND) < 2:
        return float("nan")
    one_D, other_D = unit_ND[::2].sum(0), unit_ND[1::2].sum(0)
    return float(one_D @ other_D / max(np.linalg.norm(one_D) * np.linalg.norm(other_D), 1e-12))


@dataclass(frozen=True)
class Centres:
    """A robust centre of each identity of a set.

    Attributes:
        sum_CD: their direction is the centre; 0 where no image of the identity could be embedded.
        core_R: True for the rows that a centre is made of.
        cosine_R: of each row with the centre of the others, see `Centre`.
    """

    sum_CD: Floats
    core_R: Bools
    cosine_R: Floats


def centres_of(faces: LabelledImages, embedded: EmbeddedImages, least: float | None = None) -> Centres:
    """The robust centre of each identity (`robust_centre`)."""
    rows, size = embedded.row_RD.shape
    found = Centres(
        np.zeros((faces.num_classes, size), np.float32), np.zeros(rows, np.bool_), np.ones(rows, np.float32)
    )
    for label, row_N in by_identity(faces, embedded, f"centres of {faces.title}"):
        centre = robust_centre(np.asarray(embedded.row_RD[row_N]), least)
        found.sum_CD[label], found.core_R[row_N], found.cosine_R[row_N] = centre
    return found


class Pairs(NamedTuple):
    """Pairs of rows with their cosines, the highest first."""

    first_K: Ints
    second_K: Ints
    cosine_K: Floats


def pairs_alike(
    row_CD: Floats, other_GD: Floats | None = None, *, least: float, most: int = 1_000_000
) -> Pairs:
    """All pairs of rows with a cosine of at least `least`: within one set, or between two.

    Args:
        row_CD, other_GD: centres of any norm; a zero row is like none. Memory-mapped ones are read in blocks.
        least: above 0.
        most: pairs that may be found.

    Raises:
        UserError: there are more.
    """
    found: list[tuple[Ints, Ints, Floats]] = []
    count = 0
    for start in range(0, len(row_CD), BLOCK):
        probe_BD = unit(row_CD[start : start + BLOCK], "centre", start)
        gallery_GD = row_CD[start:] if other_GD is None else other_GD
        for first, cosine_BG in cosine_blocks(probe_BD, gallery_GD):
            if other_GD is None and first == 0:
                cosine_BG = cosine_BG.triu(1)  # each pair once, and none with itself
            one, two = (cosine_BG >= least).nonzero(as_tuple=True)
            count += len(one)
            if count > most:
                raise UserError(
                    f"more than {most:,} pairs of identities have a cosine of {least:.3f} or more; "
                    "give a higher threshold, or a better model"
                )
            offset = first + (start if other_GD is None else 0)
            found.append(((one + start).numpy(), (two + offset).numpy(), cosine_BG[one, two].numpy()))
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    first_K, second_K, cosine_K = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order_K = np.lexsort((second_K, first_K, -cosine_K))
    return Pairs(first_K[order_K], second_K[order_K], cosine_K[order_K])


def chance_cosine(sets: Sequence[Floats], comparisons: float, false: float, seed: int = 0) -> float | None:
    """The cosine that `false` of so many `comparisons` of different people reach by chance.

    It is read from the cosines between identities of one set each, of which some thousand are drawn; beyond
    the last that 20 of them reach, the tail is taken to fall exponentially, which is slower than it does.

    Args:
        sets: rows (C, D) of any norm, an identity each; zero rows are passed over. Between two sets there may
            be any number of pairs of one person, within one there should be few.

    Returns:
        A cosine up to 1; None where there are fewer than 40 pairs to read it from.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for row_CD in sets:
        drawn = np.sort(rng.choice(len(row_CD), min(_DRAWN, len(row_CD)), replace=False))
        rows = unit(row_CD[drawn], "centre")
        rows = rows[rows.any(1)]
        cosine_CC = rows @ rows.T
        parts.append(cosine_CC[tuple(torch.triu_indices(len(rows), len(rows), 1))])
    cosine_P = torch.cat(parts).sort(descending=True).values.numpy()
    return tail_value(cosine_P, false / max(comparisons, 1))


def tail_value(descending_P: Floats, probability: float) -> float | None:
    """The value that a part `probability` of a distribution exceeds; of a sample of it, in falling order."""
    count = len(descending_P)
    if count < 2 * _FEWEST:
        return None
    low = max(1e-4, _FEWEST / count)
    high = min(10 * low, 0.5)
    if probability >= low:
        return float(descending_P[min(int(probability * count), count - 1)])
    at_low, at_high = (float(descending_P[int(part * count)]) for part in (low, high))
    slope = (at_low - at_high) / np.log(high / low)
    return min(1.0, at_low + slope * float(np.log(low / max(probability, 1e-300))))


def identities_in_both(
    model: Model, first: LabelledImages, second: LabelledImages, least: float | None = None, **how: Any
) -> tuple[Pairs, float]:
    """Pairs of identities of two sets that are likely one person, and the cosine that they reach at least.

    Args:
        least: cosine of two centres of one person; None: what different people within a set reach so seldom
            by chance that one in 100 identities of the second set is found wrongly (`chance_cosine`).
        how: as `embed_rows` takes it.

    Raises:
        UserError: there are too few identities to know what different people reach.
    """
    centres = [centres_of(faces, embed_rows(model, faces, **how)).sum_CD for faces in (first, second)]
    if least is None:
        count_1, count_2 = map(len, centres)
        least = chance_cosine(centres, count_1 * count_2, BY_CHANCE * count_2)
    if least is None:
        both = f"{first.title} and {second.title}"
        raise UserError(f"{both}: too few identities to choose a threshold from; give one: --at 0.5")
    return pairs_alike(*centres, least=least), least
