"""Make the `.bin` of a verification set: from drawn pairs, or from pairs that a list names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, UserError
from facerec.images.decode import ENDINGS, decode
from facerec.images.face_maker import FaceFile, FaceMaker
from facerec.images.images import Images, LabelledImages
from facerec.loading.folders import FileImages, require_inside
from facerec.loading.opening import warn_of_unaligned
from facerec.making.folds import deal, draw_pairs
from facerec.making.pair_lists import Pair
from facerec.packs.text import stays_inside
from facerec.packs.verification import write_verification
from facerec.progress import Bar
from facerec.threads import ordered_map

_log = logging.getLogger(__name__)


def folder_of(path: str) -> str:
    """The identity of an image whose folder names it."""
    return str(PurePosixPath(path).parent)


def write_drawn(
    images: LabelledImages,
    out: Path,
    maker: FaceMaker | None,
    *,
    count: int | None = None,
    folds: int = 10,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Draw pairs (see `draw_pairs`) and write them, as `maker` makes them, without one as they are.

    An image without a face, or damaged, is left out with a warning, and the pairs are drawn again without it.

    Raises:
        UserError: there are too few identities or images.
        StorageError: `out` cannot be written.
    """
    usable_M = np.arange(len(images))
    made: dict[int, bytes] = {}
    while True:
        row_K2, issame_K = draw_pairs(images.label_N[usable_M], count=count, folds=folds, seed=seed)
        image_K2 = usable_M[row_K2]
        unusable = []
        missing = [i for i in np.unique(image_K2).tolist() if i not in made]
        for i, face in _faces(images, missing, maker, workers, out.name):
            if face.payload is None:
                unusable.append(i)
                _log.warning("%s; left out", _reason(images, i, face))
            else:
                made[i] = face.payload
        if not unusable:
            break
        usable_M = np.setdiff1d(usable_M, unusable)
    row_2K = image_K2.ravel().tolist()
    identities = [str(images.classes[images.label_N[i]]) for i in row_2K]
    write_verification(out, [made[i] for i in row_2K], issame_K, identities, folds)


def write_listed(
    root: Path,
    pairs: Sequence[Pair],
    out: Path,
    maker: FaceMaker,
    *,
    workers: int = 1,
    folds: int | None = None,
    keep_order: bool = True,
    seed: int = 0,
    identity: Callable[[str], str] = folder_of,
) -> None:
    """Write listed pairs; each image is made once.

    Args:
        root: the folder that the paths of the list start from.
        folds: their number, where the list gives it; those to deal, see `folds.deal`.
        keep_order: the pairs stay as they are listed; else they are dealt into folds.
        seed: of the dealing.
        identity: of an image by its path; where it contradicts an answer of the list, none is kept.

    Raises:
        ConfigError: so many folds are not possible.
        MissingDataError: an image is not there; the message says which, and how many more. Or one of a path
            below `root` is a link that leads out of it.
        DamagedDataError: one is damaged, or has no face.
        StorageError: `out` cannot be written.
    """
    sizes: list[int] | None = None
    if not keep_order:
        same_N = np.array([pair.same for pair in pairs])
        fold_N = deal(same_N, _identities(pairs, identity), folds=folds, seed=seed)
        if fold_N is not None:
            pairs = [pairs[i] for i in np.lexsort((~same_N, fold_N)).tolist()]
            sizes = np.bincount(fold_N).tolist()
    paths = list(dict.fromkeys(path for pair in pairs for path in pair[:2]))
    made = dict(zip(paths, faces_of(root, paths, maker, workers, out.name), strict=True))
    rows = [made[path] for pair in pairs for path in pair[:2]]
    write_verification(out, rows, [pair.same for pair in pairs], _identities(pairs, identity), sizes or folds)


def faces_of(root: Path, paths: Sequence[str], maker: FaceMaker, workers: int, title: str) -> Iterator[bytes]:
    """Make the faces of listed images in threads, behind a progress bar.

    Raises:
        MissingDataError: an image is not there, or a link that leads out of `root`.
        DamagedDataError: one is damaged, or has no face.
    """
    images = FileImages(root, _files(root, paths))
    if maker.detector is None:
        warn_of_unaligned(root, images.sample(16), "--align finds and aligns the faces")
    for i, face in _faces(images, range(len(images)), maker, workers, title):
        if face.payload is None:
            faceless = maker.detector is not None and face.found is None
            hint = "; --no-face crop takes it as it is" if faceless else ""
            raise DamagedDataError(_reason(images, i, face) + hint)
        yield face.payload


def _faces(
    images: Images, wanted: Sequence[int], maker: FaceMaker | None, workers: int, title: str
) -> Iterator[tuple[int, FaceFile]]:
    """Make faces in threads, behind a progress bar."""

    def make(i: int) -> tuple[int, FaceFile]:
        try:
            encoded = images.encoded(i)
            if maker is not None:
                return i, maker.make(encoded)
            decode(encoded)
            return i, FaceFile(bytes(encoded))
        except (DamagedDataError, MissingDataError) as error:
            return i, FaceFile(None, str(error))

    faces = ordered_map(make, wanted, workers)
    yield from Bar(faces, total=len(wanted), desc=f"images of {title}", delay=0.5)


def _reason(images: Images, i: int, face: FaceFile) -> str:
    where = images.where(i)
    return face.note if where in face.note else f"{where}: {face.note}"


def _files(root: Path, paths: Sequence[str]) -> list[str]:
    """Find the listed files, or those that differ from them in their endings alone."""
    found = {path: _endings(root, path) for path in paths}
    absent = [path for path in paths if not found[path]]
    if absent:
        more = f" and {len(absent) - 1:,} more of {len(paths):,}" if len(absent) > 1 else ""
        raise MissingDataError(
            f"{root / absent[0]}: is in the list, but not there{more}; paths start from {root}"
        )
    for path, (first, *others) in found.items():
        if others:
            names = " and ".join(PurePosixPath(file).name for file in (first, others[0]))
            raise UserError(f"{root / path}: is not there, but {names} are; remove one of them")
    files = [found[path][0] for path in paths]
    try:
        for path, file in zip(paths, files, strict=True):
            if stays_inside(path):
                require_inside(root / file, root)
    except OSError as error:
        raise MissingDataError(f"{error.filename}: {error.strerror}") from None
    renamed = [(path, file) for path, file in zip(paths, files, strict=True) if path != file]
    for path, file in renamed[:1]:
        took = f"such as {root / file} for {path}"
        _log.info("%d of %d listed images have another ending, %s", len(renamed), len(paths), took)
    return files


def _endings(root: Path, path: str) -> list[str]:
    """The path, where there is such a file, else those of the files with another ending."""
    if (root / path).is_file():
        return [path]
    others = [case(ending) for ending in ENDINGS for case in (str.lower, str.upper)]
    names = [str(PurePosixPath(path).with_suffix(ending)) for ending in others]
    return [name for name in names if (root / name).is_file()]


def _identities(pairs: Sequence[Pair], identity: Callable[[str], str]) -> list[str] | None:
    """The identities of listed images; None where those contradict an answer."""
    names = [identity(path) for pair in pairs for path in pair[:2]]
    same = [one == other for one, other in zip(names[::2], names[1::2], strict=True)]
    return names if same == [pair.same for pair in pairs] else None
