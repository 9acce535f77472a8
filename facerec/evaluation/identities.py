"""The images of identities as embeddings in a file without a name, and the centre of each identity.

Shape suffixes: N images, C identities, D embedding size, R embedded images (rows of the file).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, UserError, counted
from facerec.evaluation.any_images import Portion, embed_any
from facerec.evaluation.statistics.centres import Centre, Pairs, chance_cosine, pairs_alike, robust_centre
from facerec.files import nameless, storing
from facerec.images.images import Images, LabelledImages
from facerec.models.model import Model
from facerec.progress import Bar
from facerec.vectors import unit_rows

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_BY_CHANCE: Final = 0.01  # identities per identity that are taken for one of another set wrongly


@dataclass(frozen=True)
class EmbeddedImages:
    """The unit embeddings of the images of a set that could be embedded.

    Attributes:
        unit_RD: float32, memory-mapped.
        position_R: of each row's image in the set; equal images of a set that knows them are embedded once.
        damaged: why each other image could not be embedded.
    """

    unit_RD: Floats
    position_R: Ints
    damaged: dict[int, str]


def embed_units(
    model: Model,
    images: Images,
    folder: Path | None = None,
    *,
    seen: Callable[[Portion], Any] | None = None,
    **how: Any,
) -> EmbeddedImages:
    """Embed images into a file without a name, which is gone when nothing uses it any more.

    Args:
        folder: of the file, 4·D bytes per image; None: that for temporary files.
        seen: is called with each portion while its pixels are at hand.
        how: flip, batch_size, precision, as `embed_any` takes them.

    Raises:
        DamagedDataError: not one image could be embedded.
        NonFiniteError: an embedding, named.
        StorageError: the disk is full.
    """
    positions: list[int] = []
    damaged: dict[int, str] = {}
    size = 0
    place = Path(tempfile.gettempdir()) if folder is None else folder
    with storing(place / "embeddings"), nameless(place) as file:
        for portion in embed_any(model, images, **how):
            damaged |= {i: str(error) for i, error in portion.failed.items()}
            if portion.embedding_PD is not None:
                positions += portion.positions
                size = portion.embedding_PD.shape[1]
                file.write(np.ascontiguousarray(unit_rows(portion.embedding_PD)).data)
            if seen is not None:
                seen(portion)
        if not positions:
            reason = next(iter(damaged.values()), "there are none")
            raise DamagedDataError(f"0 of {counted(len(damaged), 'image')} could be embedded: {reason}")
        file.flush()
        unit_RD = np.memmap(file, np.float32, "r", shape=(len(positions), size))
    return EmbeddedImages(unit_RD, np.array(positions, np.int64), damaged)


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


@dataclass(frozen=True)
class Centres:
    """A robust centre of each identity of a set.

    Attributes:
        sum_CD: their direction is the centre; 0 where no image of the identity could be embedded.
        core_R: True for the rows that a centre is made of.
        cosine_R: of each row with the centre of the others, see `Centre`.
    """

    sum_CD: Floats
    core_R: npt.NDArray[np.bool_]
    cosine_R: Floats


def centres_of(faces: LabelledImages, embedded: EmbeddedImages, least: float | None = None) -> Centres:
    """The robust centre of each identity (`robust_centre`)."""
    rows, size = embedded.unit_RD.shape
    found = Centres(
        np.zeros((faces.num_classes, size), np.float32), np.zeros(rows, np.bool_), np.ones(rows, np.float32)
    )
    for label, row_N in by_identity(faces, embedded, f"centres of {faces.title}"):
        centre: Centre = robust_centre(np.asarray(embedded.unit_RD[row_N]), least)
        found.sum_CD[label], found.core_R[row_N], found.cosine_R[row_N] = centre
    return found


class InBoth(NamedTuple):
    """Pairs of identities of two sets that are likely one person.

    Attributes:
        pairs: labels in the first and in the second set, the most alike first.
        least: the cosine that they reach at least.
    """

    pairs: Pairs
    least: float


def identities_in_both(
    model: Model, first: LabelledImages, second: LabelledImages, least: float | None = None, **how: Any
) -> InBoth:
    """Search two sets for people who are in both, by the centres of their identities.

    Args:
        least: cosine of two centres of one person; None: what different people within a set reach so seldom
            by chance that one in 100 identities of the second set is found wrongly (`chance_cosine`).
        how: as `embed_units` takes it.

    Raises:
        UserError: there are too few identities to know what different people reach.
    """
    centres = [centres_of(faces, embed_units(model, faces, **how)).sum_CD for faces in (first, second)]
    if least is None:
        count_1, count_2 = map(len, centres)
        least = chance_cosine(centres, count_1 * count_2, _BY_CHANCE * count_2)
    if least is None:
        both = f"{first.title} and {second.title}"
        raise UserError(f"{both}: too few identities to choose a threshold from; give one: --at 0.5")
    return InBoth(pairs_alike(*centres, least=least), least)
