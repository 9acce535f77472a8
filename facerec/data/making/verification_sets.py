"""Make the `.bin` of a verification set: from drawn pairs, or from pairs that a list names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from facerec.data.decode import ENDINGS
from facerec.data.index_text import stays_inside
from facerec.data.making.drawing import draw_pairs
from facerec.data.making.from_folder import make_file
from facerec.data.making.pair_lists import Pair
from facerec.data.making.pictures import FaceMaker, Made, in_order
from facerec.data.making.shelves import Shelf
from facerec.data.pictures import require_inside
from facerec.data.verification import write_verification
from facerec.errors import DamagedDataError, MissingDataError, UserError

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def write_drawn(
    shelf: Shelf, out: Path, *, count: int | None = None, folds: int = 10, seed: int = 0, workers: int = 1
) -> int:
    """Draw pairs (see `draw_pairs`) and write them. A picture without a face, or damaged, is left out with a
    warning, and the drawing is done again without it.

    Returns:
        The number of pairs.

    Raises:
        UserError: there are too few people or pictures.
        StorageError: `out` cannot be written.
    """
    usable_M = np.arange(len(shelf.label_N))
    made: dict[int, bytes] = {}

    def make(i: int) -> tuple[int, Made]:
        return i, shelf.make(i)

    while True:
        drawn = draw_pairs(shelf.label_N[usable_M], count=count, folds=folds, seed=seed)
        picture_K2 = usable_M[drawn.picture_K2]
        missing = [i for i in np.unique(picture_K2).tolist() if i not in made]
        bad = []
        for i, result in _shown(in_order(make, missing, workers), len(missing), out):
            if result.payload is None:
                bad.append(i)
                _log.warning("%s: %s; left out", shelf.name(i), result.note)
            else:
                made[i] = result.payload
        if not bad:
            break
        usable_M = np.setdiff1d(usable_M, bad)
    picture_2K = picture_K2.ravel().tolist()
    people = [shelf.person(i) for i in picture_2K]
    write_verification(out, [made[i] for i in picture_2K], drawn.issame_K, people, folds)
    return len(drawn.issame_K)


def write_listed(
    root: Path,
    pairs: Sequence[Pair],
    out: Path,
    maker: FaceMaker,
    workers: int = 1,
    folds: int | None = None,
) -> None:
    """Write listed pairs in their order; each picture is made once.

    Args:
        root: the folder that the paths of the list start from.
        pairs: what to write.
        out: the `.bin`.
        maker: makes the faces.
        workers: threads.
        folds: how many the list makes, where it says so.

    Raises:
        MissingDataError: a picture is not there; the message says which, and how many more. Or one of a path
            below `root` is a link that leads out of it.
        DamagedDataError: one is damaged, or has no face.
        StorageError: `out` cannot be written.
    """
    paths = list(dict.fromkeys(path for pair in pairs for path in pair[:2]))
    file_of = {path: _file(root / path) for path in paths}
    absent = [path for path in paths if file_of[path] is None]
    if absent:
        more = f" and {len(absent) - 1:,} more of {len(paths):,}" if len(absent) > 1 else ""
        raise MissingDataError(
            f"{root / absent[0]}: is in the list, but not there{more}; paths start from {root}"
        )
    try:
        for path in filter(stays_inside, paths):
            require_inside(file_of[path] or root / path, root)
    except OSError as error:
        raise MissingDataError(f"{error.filename}: {error.strerror}") from None
    others = [path for path in paths if file_of[path] != root / path]
    if others:
        took = f"such as {file_of[others[0]]} for {others[0]}"
        _log.info("%d of %d listed images have another ending, %s", len(others), len(paths), took)

    def make(path: str) -> tuple[str, Made]:
        return path, make_file(maker, file_of[path] or root / path)

    made: dict[str, bytes] = {}
    for path, result in _shown(in_order(make, paths, workers), len(paths), out):
        if result.payload is None:
            hint = "; --no-face crop takes it as it is" if maker.detector is not None else ""
            raise DamagedDataError(f"{root / path}: {result.note}{hint}")
        made[path] = result.payload
    pictures = [made[path] for pair in pairs for path in pair[:2]]
    write_verification(out, pictures, [pair.same for pair in pairs], _people(pairs), folds)


def _file(path: Path) -> Path | None:
    """The listed file, or the one that differs from it in its ending alone; None where there is none."""
    if path.is_file():
        return path
    endings = [case(ending) for ending in ENDINGS for case in (str.lower, str.upper)]
    found = [path.with_suffix(ending) for ending in endings if path.with_suffix(ending).is_file()]
    if len(found) > 1:
        raise UserError(
            f"{path}: is not there, but {found[0].name} and {found[1].name} are; remove one of them"
        )
    return found[0] if found else None


def _people(pairs: Sequence[Pair]) -> list[str] | None:
    """Whose the listed pictures are, by their folders; None where those contradict an answer."""
    people = [str(Path(path).parent) for pair in pairs for path in pair[:2]]
    agree = all(
        (one == other) == pair.same for one, other, pair in zip(people[::2], people[1::2], pairs, strict=True)
    )
    return people if agree else None


def _shown(results: Iterator[Result], total: int, out: Path) -> Iterator[Result]:
    """The same behind a progress bar."""
    yield from tqdm(results, total=total, desc=f"pictures of {out.name}", disable=None, delay=0.5)
