"""Verification sets: the `.bin` packs of image pairs, read safely, each distinct image kept once.

Shape suffixes: N pairs; 2N their images, pair i being rows 2i and 2i+1.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, MissingDataError, counted
from facerec.files import replacing_both
from facerec.pickles import interpreter as safe_pickle


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of images, of one identity or of two.

    Attributes:
        name: e.g. ``lfw``; the file's name without its ending.
        images: the P distinct images as encoded files, in the order of first occurrence.
        index_2N: int64, the image of each row.
        issame_N: bool, True where pair i is genuine: of one identity.
        path: where it was read from, if anywhere.
        identity_2N: the name of each row's identity, where a file beside the pack has it (`identities_path`).
        fold_N: the fold of each pair, from 0 and ascending, where that file says in how many it was made.
    """

    name: str
    images: Sequence[bytes]
    index_2N: npt.NDArray[np.int64]
    issame_N: npt.NDArray[np.bool_]
    path: Path | None = None
    identity_2N: npt.NDArray[np.str_] | None = None
    fold_N: npt.NDArray[np.int64] | None = None

    @property
    def folds(self) -> int | None:
        """The number of folds it was made in, where it is known."""
        return None if self.fold_N is None else int(self.fold_N[-1]) + 1

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.issame_N)

    def where(self, image: int) -> str:
        """The place of an image for an error message: ``the first image of pair 17 in /data/lfw.bin``."""
        row = int(np.flatnonzero(self.index_2N == image)[0])
        return f"the {('first', 'second')[row % 2]} image of pair {row // 2} in {self.path or self.name}"

    def describe(self) -> str:
        """One line for the log."""
        same = int(self.issame_N.sum())
        names = self.identity_2N
        identities = "" if names is None else f", {counted(len(np.unique(names)), 'identity')}"
        return (
            f"{self.name}: {counted(len(self), 'pair')} ({same:,} genuine, {len(self) - same:,} impostor) "
            f"of {counted(len(self.images), 'distinct image')} from {self.path or 'memory'}" + identities
        )


def verification_set(
    name: str, images: Sequence[bytes], issame: Sequence[bool] | np.ndarray, path: Path | None = None
) -> VerificationSet:
    """A verification set of 2N encoded images and N answers; equal images are kept once.

    Raises:
        DamagedDataError: the numbers do not fit together, or there are no pairs.
    """
    source = path or name
    if len(images) % 2:
        raise DamagedDataError(
            f"{source} holds {counted(len(images), 'image')}, an odd number; pairs need two each"
        )
    if len(images) != 2 * len(issame):
        raise DamagedDataError(
            f"{source} holds {counted(len(images), 'image')}, so "
            f"{counted(len(images) // 2, 'pair')}, but {len(issame):,} "
            "answers (issame); the two must agree"
        )
    if not len(issame):
        raise DamagedDataError(f"{source} holds no pairs")
    known: dict[bytes, int] = {}
    # Each object is compared once: one may stand in a list a million times, and equal ones be long.
    row = {key: known.setdefault(one, len(known)) for key, one in {id(one): one for one in images}.items()}
    index_2N = np.fromiter((row[id(one)] for one in images), np.int64, len(images))
    return VerificationSet(name, list(known), index_2N, np.asarray(issame, np.bool_), path)


def load_verification(path: str | Path) -> VerificationSet:
    """Read a `.bin` pack, as Python 2 or 3 wrote it, without running anything it may ask for.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: it is no pickle of 2N images and N answers, asks for a class or function that no
            pack needs, or the file of its identities does not fit.
    """
    path = Path(path)
    try:
        content = safe_pickle.load(path)
    except MissingDataError as error:
        raise MissingDataError(
            f"there is no verification set {path}; eval.root must be the folder of the .bin files"
        ) from error
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise DamagedDataError(f"{path} is no verification pack: a pair (images, issame) was expected")
    made = verification_set(path.stem, _images(path, content[0]), _answers(path, content[1]), path)
    identity_2N, fold_N = read_identities(identities_path(path), made.issame_N)
    return replace(made, identity_2N=identity_2N, fold_N=fold_N)


def identities_path(path: Path) -> Path:
    """The file beside ``lfw.bin`` with the identities of its images: ``lfw.people.tsv``."""
    return path.with_name(f"{path.stem}.people.tsv")


def read_identities(
    path: Path, issame_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.str_] | None, npt.NDArray[np.int64] | None]:
    """The identity of each image of the pairs, (2N,), and the fold of each pair, (N,); None where not known.

    A line ``# 5 folds``, as even as can be, or ``# 2 folds: 40 38``, if any, then a line per pair: two names
    with a tab between; or none of them.

    Raises:
        DamagedDataError: the lines do not fit the pairs, or contradict an answer; it names the line.
    """
    try:
        lines = path.read_text("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return None, None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedDataError(f"{path} cannot be read ({error}); correct or remove it") from error
    fold_N = None
    said = re.fullmatch("# ([0-9]{1,9}) folds(?:: ([0-9]{1,9}(?: [0-9]{1,9})*))?", lines[0])
    if said:
        folds, pairs = int(said[1]), len(issame_N)
        sizes = [int(size) for size in (said[2] or "").split()]
        if not 2 <= folds <= pairs or (
            sizes and (len(sizes), min(sizes) > 0, sum(sizes)) != (folds, True, pairs)
        ):
            raise DamagedDataError(
                f"{path}, line 1: {lines[0][2:62]} of {counted(pairs, 'pair')}; correct or remove it"
            )
        sizes = sizes or [len(part) for part in np.array_split(issame_N, folds)]
        fold_N = np.repeat(np.arange(folds), sizes)
        del lines[0]
        if not lines:
            return None, fold_N
    if len(lines) != len(issame_N):
        raise DamagedDataError(
            f"{path} has {counted(len(lines), 'line')} for {counted(len(issame_N), 'pair')}; "
            "correct or remove it"
        )
    names = [line.split("\t") for line in lines]
    for number, (pair, same) in enumerate(zip(names, issame_N.tolist(), strict=True), 2 if said else 1):
        if len(pair) != 2 or not all(pair) or "\0" in "".join(pair):  # NumPy drops it from the end of a text
            raise DamagedDataError(f"{path}, line {number}: two names with a tab between were expected")
        if (pair[0] == pair[1]) != same:
            answer = "one identity" if same else "two identities"
            raise DamagedDataError(
                f"{path}, line {number}: names {pair[0]} and {pair[1]}, but the pack says {answer}"
            )
    return np.array(names).reshape(-1), fold_N


def write_verification(
    path: str | Path,
    images: Sequence[bytes],
    issame: Sequence[bool] | np.ndarray,
    identities: Sequence[str] | None = None,
    folds: int | Sequence[int] | None = None,
) -> None:
    """Write a `.bin` pack of 2N encoded images and N answers, a plain pickle that every reader takes.

    `identities`, the 2N names of them, and the number of folds (or the pairs of each) go into a file beside
    it (`identities_path`); without either, one that an earlier pack of this name left there is removed. Both
    are replaced, or neither.

    Raises:
        StorageError: it could not be written; a file that was there before still is.
        DamagedDataError: the numbers do not fit together.
    """
    path = Path(path)
    answers = [bool(one) for one in issame]
    verification_set(path.stem, images, answers, path)
    # One object for equal images: the pickle then holds each of them once.
    same: dict[bytes, bytes] = {}
    content = ([same.setdefault(one, one) for one in map(bytes, images)], answers)
    # Tabs and line ends would break the lines.
    names = [name.translate(dict.fromkeys(map(ord, "\t\r\n\0"), " ")) for name in identities or ()]
    rows = zip(names[0::2], names[1::2], strict=True)
    with replacing_both(path, identities_path(path)) as (file, listing):
        pickle.dump(content, file, protocol=4)
        text = "".join(f"{one}\t{other}\n" for one, other in rows)
        if isinstance(folds, Sequence):
            text = f"# {len(folds)} folds: {' '.join(map(str, folds))}\n{text}"
        elif folds and folds > 1:
            text = f"# {folds} folds\n{text}"
        listing.write(text.encode("utf-8", "surrogateescape"))


def _images(path: Path, value: Any) -> list[Any]:
    """Encoded images out of a list, or an array of objects, of byte strings or of uint8 arrays."""
    listed = _items(path, value, "its images are")
    made = {id(one): one if isinstance(one, bytes) else _image(one) for one in listed}
    for i, one in enumerate(listed):
        if made[id(one)] is None:
            raise DamagedDataError(f"{path}: image {i} is {_kind(one)}, not the bytes of an image file")
    return [made[id(one)] for one in listed]


def _image(one: Any) -> bytes | None:
    """The bytes in an array (n,), or (n, 1) as OpenCV's `imencode` gives it; None where it is none."""
    flat = isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.size == max(one.shape, default=0)
    return one.tobytes() if flat else None


def _answers(path: Path, value: Any) -> npt.NDArray[np.bool_]:
    """Booleans out of a list or an array of bools, or of numbers that are 0 or 1."""
    listed = _items(path, value, "issame is")
    for i, one in enumerate(listed):
        number = isinstance(one, bool | int | float)
        if not number or one not in (0, 1):  # True and 1.0 equal 1
            said = f"{one!r:.20}" if number else _kind(one)
            raise DamagedDataError(f"{path}: the answer (issame) of pair {i} is {said}, not true or false")
    return np.asarray(listed, np.bool_)


def _items(path: Path, value: Any, what: str) -> list[Any] | tuple[Any, ...]:
    """A list, or the items of an array (N,) or (N, 1)."""
    if isinstance(value, np.ndarray) and value.ndim and value.size == max(value.shape):
        return list(value.flat) if value.dtype.hasobject else value.ravel().tolist()
    if not isinstance(value, list | tuple):
        raise DamagedDataError(f"{path} is no verification pack: {what} {_kind(value)}, not a list")
    return value


def _kind(value: Any) -> str:
    """Type and size for a message, and nothing of the contents."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return "None" if value is None else f"of type {type(value).__name__}"
