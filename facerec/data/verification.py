"""Verification sets: the `.bin` packs of picture pairs, read safely, each distinct picture kept once.

Shape suffixes: N pairs; 2N their pictures, pair i being rows 2i and 2i+1.
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

from facerec import safe_pickle
from facerec.errors import DamagedDataError, MissingDataError, counted
from facerec.files import replacing_both


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of pictures, same person or not.

    Attributes:
        name: e.g. ``lfw``; the file's name without its ending.
        pictures: the P distinct pictures as encoded files, in the order of first occurrence; nothing is
            decoded before it is asked for.
        index_2N: int64, which picture each row is.
        issame_N: bool, whether pair i shows one person.
        path: where it was read from, if anywhere.
        identity_2N: whose each row is, names, where a file beside the pack says so (`people_path`).
        folds: how many folds it was made in, where that file says so.
    """

    name: str
    pictures: Sequence[bytes]
    index_2N: npt.NDArray[np.int64]
    issame_N: npt.NDArray[np.bool_]
    path: Path | None = None
    identity_2N: npt.NDArray[np.str_] | None = None
    folds: int | None = None

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.issame_N)

    def where(self, picture: int) -> str:
        """The place of a picture for an error message: ``the first picture of pair 17 in /data/lfw.bin``."""
        row = int(np.flatnonzero(self.index_2N == picture)[0])
        return f"the {('first', 'second')[row % 2]} picture of pair {row // 2} in {self.path or self.name}"

    def describe(self) -> str:
        """One line for the log."""
        same = int(self.issame_N.sum())
        return (
            f"{self.name}: {counted(len(self), 'pair')} ({same:,} genuine, {len(self) - same:,} impostor) "
            f"of {counted(len(self.pictures), 'distinct picture')} from {self.path or 'memory'}"
            + ("" if self.identity_2N is None else f", {len(np.unique(self.identity_2N)):,} people")
        )


def verification_set(
    name: str, pictures: Sequence[bytes], issame: Sequence[bool] | np.ndarray, path: Path | None = None
) -> VerificationSet:
    """A verification set of 2N encoded pictures and N answers; equal pictures are kept once.

    Raises:
        DamagedDataError: the numbers do not fit together, or there are no pairs.
    """
    place = path or name
    if len(pictures) % 2:
        raise DamagedDataError(
            f"{place} holds {len(pictures):,} pictures, an odd number; pairs need two each"
        )
    if len(pictures) != 2 * len(issame):
        raise DamagedDataError(
            f"{place} holds {len(pictures):,} pictures, so {len(pictures) // 2:,} pairs, but {len(issame):,} "
            "answers (issame); the two must agree"
        )
    if not len(issame):
        raise DamagedDataError(f"{place} holds no pairs")
    known: dict[bytes, int] = {}
    index_2N = np.fromiter((known.setdefault(one, len(known)) for one in pictures), np.int64, len(pictures))
    return VerificationSet(name, list(known), index_2N, np.asarray(issame, np.bool_), path)


def load_verification(path: str | Path) -> VerificationSet:
    """Read a `.bin` pack, as Python 2 or 3 wrote it, without running anything it may ask for.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: it is no pickle or a cut one, asks for a class or function no pack needs (named),
            what it holds is not 2N pictures and N answers, or the file of its people does not fit it.
    """
    path = Path(path)
    try:
        content = safe_pickle.load(path)
    except MissingDataError as error:
        raise MissingDataError(
            f"there is no verification set {path}; eval.root must be the folder of the .bin files"
        ) from error
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise DamagedDataError(f"{path} is no verification pack: a pair (pictures, issame) was expected")
    made = verification_set(path.stem, _pictures(path, content[0]), _answers(path, content[1]), path)
    identity_2N, folds = read_people(people_path(path), made.issame_N)
    return replace(made, identity_2N=identity_2N, folds=folds)


def people_path(path: Path) -> Path:
    """The file beside ``lfw.bin`` that says whose its pictures are: ``lfw.people.tsv``."""
    return path.with_name(f"{path.stem}.people.tsv")


def read_people(
    path: Path, issame_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.str_] | None, int | None]:
    """Names of the people of each pair's two pictures, (2N,), and the number of folds; None where not said.

    A line ``# 5 folds``, if any, then a line a pair: two names with a tab between; or none of them.

    Raises:
        DamagedDataError: the lines do not fit the pairs, or contradict an answer; it names the line.
    """
    try:
        lines = path.read_text("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return None, None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedDataError(f"{path} cannot be read ({error}); mend it or remove it") from error
    folds = None
    said = re.fullmatch("# ([0-9]{1,9}) folds", lines[0])
    if said:
        folds = int(said[1])
        if not 2 <= folds <= len(issame_N):
            raise DamagedDataError(
                f"{path}, line 1: {folds} folds of {len(issame_N):,} pairs; mend or remove it"
            )
        del lines[0]
        if not lines:
            return None, folds
    if len(lines) != len(issame_N):
        raise DamagedDataError(
            f"{path} has {len(lines):,} lines for {len(issame_N):,} pairs; mend or remove it"
        )
    names = [line.split("\t") for line in lines]
    for number, (pair, same) in enumerate(zip(names, issame_N.tolist(), strict=True), 2 if said else 1):
        if len(pair) != 2 or not all(pair) or "\0" in "".join(pair):  # NumPy drops it from the end of a text
            raise DamagedDataError(f"{path}, line {number}: two names with a tab between were expected")
        if (pair[0] == pair[1]) != same:
            answer = "the same person" if same else "two people"
            raise DamagedDataError(
                f"{path}, line {number}: names {pair[0]} and {pair[1]}, but the pack says {answer}"
            )
    return np.array(names).reshape(-1), folds


def write_verification(
    path: str | Path,
    pictures: Sequence[bytes],
    issame: Sequence[bool] | np.ndarray,
    people: Sequence[str] | None = None,
    folds: int | None = None,
) -> None:
    """Write a `.bin` pack of 2N encoded pictures and N answers, a plain pickle that every reader takes.

    `people`, the 2N names of who is in the pictures, and the number of folds go into a file beside it
    (`people_path`); without either, one that an earlier pack of this name left there is removed. Both are
    replaced, or neither.

    Raises:
        StorageError: it could not be written; a file that was there before still is.
        DamagedDataError: the numbers do not fit together.
    """
    path = Path(path)
    answers = [bool(one) for one in issame]
    verification_set(path.stem, pictures, answers, path)
    # One object for equal pictures: the pickle then holds each of them once.
    same: dict[bytes, bytes] = {}
    content = ([same.setdefault(one, one) for one in map(bytes, pictures)], answers)
    # Tabs and line ends would break the lines.
    names = [name.translate(dict.fromkeys(map(ord, "\t\r\n\0"), " ")) for name in people or ()]
    rows = zip(names[0::2], names[1::2], strict=True)
    with replacing_both(path, people_path(path)) as (file, listing):
        pickle.dump(content, file, protocol=4)
        text = "".join(f"{one}\t{other}\n" for one, other in rows)
        if folds and folds > 1:
            text = f"# {folds} folds\n{text}"
        listing.write(text.encode("utf-8", "surrogateescape"))


def _pictures(path: Path, value: Any) -> list[bytes]:
    """Encoded pictures out of a list, or an array of objects, of byte strings or of uint8 arrays."""
    value = _flat(value)
    if not isinstance(value, list | tuple):
        raise DamagedDataError(f"{path} is no verification pack: its pictures are {_kind(value)}, not a list")
    pictures = []
    known: dict[int, bytes] = {}  # by id: one object may stand in the list many times
    same: dict[bytes, bytes] = {}  # compared once for each object, however long and often equal ones are held
    for i, one in enumerate(value):
        if id(one) not in known:
            picture = one if isinstance(one, bytes) else _picture(one)
            if picture is None:
                raise DamagedDataError(
                    f"{path}: picture {i} is {_kind(one)}, not the bytes of a picture file"
                )
            known[id(one)] = same.setdefault(picture, picture)
        pictures.append(known[id(one)])
    return pictures


def _picture(one: Any) -> bytes | None:
    """The bytes in an array (n,), or (n, 1) as OpenCV's `imencode` gives it; None where it is none."""
    flat = isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.size == max(one.shape, default=0)
    return one.tobytes() if flat else None


def _answers(path: Path, value: Any) -> npt.NDArray[np.bool_]:
    """Booleans out of a list or an array of bools, or of numbers that are 0 or 1."""
    value = _flat(value)
    if not isinstance(value, list | tuple):
        raise DamagedDataError(f"{path} is no verification pack: issame is {_kind(value)}, not a list")
    for i, one in enumerate(value):
        number = isinstance(one, bool | int | float)
        if not number or one not in (0, 1):  # True and 1.0 equal 1
            said = f"{one!r:.20}" if number else _kind(one)
            raise DamagedDataError(f"{path}: the answer (issame) of pair {i} is {said}, not true or false")
    return np.asarray(value, np.bool_)


def _flat(value: Any) -> Any:
    """The items of an array (N,) or (N, 1) as a list; anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim and value.size == max(value.shape):
        return list(value.flat) if value.dtype.hasobject else value.ravel().tolist()
    return value


def _kind(value: Any) -> str:
    """Type and size for a message, and nothing of the contents."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return "None" if value is None else f"of type {type(value).__name__}"
