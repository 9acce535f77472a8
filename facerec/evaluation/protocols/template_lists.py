"""Read the lists of the template protocols: YTF's splits, and IJB-B's and IJB-C's faces, scores and pairs.

Shape suffixes: R rows of the face list, P images, T templates, V videos, N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, MissingDataError
from facerec.evaluation.protocols.templates import FaceList, Ints
from facerec.packs.index_text import is_number, number_blocks, stays_inside, text_lines

_LARGEST = 1e9  # of landmarks in pixels and scores: float32 holds it, and nothing sensible is larger


@dataclass(frozen=True)
class VideoPairs:
    """YTF: `video_V` are folders (``Name/k``), pairs index them, `split_N` is the fold of each pair."""

    video_V: list[str]
    first_N: Ints
    second_N: Ints
    issame_N: npt.NDArray[np.bool_]
    split_N: Ints


def read_ytf_splits(path: Path) -> VideoPairs:
    """Read ``splits.txt``: a header line, if any, then ``split, first video, second video, is same``.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: naming the line that is wrong.
    """
    known: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for number, line in _lines(path):
        fields = [field.strip() for field in line.split(",")]
        if not rows and number == 1 and not is_number(fields[0]):
            continue  # the header
        right = len(fields) == 4 and is_number(fields[0]) and fields[3] in ("0", "1")
        if not right or not all(map(stays_inside, fields[1:3])):
            raise _wrong(path, number, line, "split, first video, second video, is same (0 or 1)")
        first, second = (known.setdefault(video, len(known)) for video in fields[1:3])
        rows.append((int(fields[0]), first, second, int(fields[3])))
    if not rows:
        raise DamagedDataError(f"{path} holds no pairs")
    split, first_N, second_N, same = np.array(rows).T
    return VideoPairs(list(known), first_N, second_N, same.astype(bool), split)


@dataclass(frozen=True)
class IjbLists:
    """IJB-B or IJB-C: file names, landmarks and detector scores of the images, who is in which template,
    the listed pairs of templates."""

    name_P: list[str]
    landmarks_P52: npt.NDArray[np.float32]
    score_P: npt.NDArray[np.float32]
    faces: FaceList
    id_T: Ints
    first_N: Ints
    second_N: Ints
    issame_N: npt.NDArray[np.bool_]


def read_ijb(folder: Path, name: str) -> IjbLists:
    """Read the three lists of `name` (``ijbb`` or ``ijbc``) in `folder`.

    Raises:
        MissingDataError: a list is missing.
        DamagedDataError: naming the line that is wrong, or the image or template that one list has and the
            other has not.
    """
    name_R, template_R, medium_R = _read_faces(folder / f"{name}_face_tid_mid.txt")
    scores = folder / f"{name}_name_5pts_score.txt"
    number_of, landmarks_P52, score_P = _read_scores(scores)
    try:
        image_R = np.array([number_of[one] for one in name_R])
    except KeyError as error:
        raise DamagedDataError(f"{scores}: lacks the image {error}, which the face list names") from None
    template, template_R = np.unique(template_R, return_inverse=True)
    pairs = folder / f"{name}_template_pair_label.txt"
    first_N, second_N, issame_N = read_template_pairs(pairs)
    faces = FaceList(image_R, template_R.astype(np.int32), medium_R)
    first_N, second_N = (_rows_of(ids, template, pairs) for ids in (first_N, second_N))
    return IjbLists(list(number_of), landmarks_P52, score_P, faces, template, first_N, second_N, issame_N)


def read_ijb_subjects(path: Path, id_T: Ints) -> tuple[Ints, Ints]:
    """Read a gallery or probe list of the 1:N protocol: ``template id,subject id,…``, a header if any before.

    Args:
        path: the list; a template has a line for each of its images.
        id_T: published ids of the templates, ascending.

    Returns:
        Rows of `id_T` and subjects, a template each.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: naming the line that is wrong, or the template that is unknown.
    """
    subject_of: dict[int, int] = {}
    for number, line in _lines(path):
        fields = [field.strip().strip('"') for field in line.split(",")]
        if number == 1 and not is_number(fields[0]):
            continue  # the header
        if len(fields) < 2 or not (is_number(fields[0]) and is_number(fields[1])):
            raise _wrong(path, number, line, "template id, subject id, …")
        subject = subject_of.setdefault(int(fields[0]), int(fields[1]))
        if subject != int(fields[1]):
            raise _wrong(path, number, line, f"of the subject {subject} that template {fields[0]} had before")
    if not subject_of:
        raise DamagedDataError(f"{path} holds no templates")
    return _rows_of(np.array(list(subject_of)), id_T, path), np.array(list(subject_of.values()))


def read_template_pairs(path: Path) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Read ``template 1, template 2, label`` lines, 15.7 million of them in IJB-C, at NumPy's speed.

    Returns:
        Template ids, int32, and whether the pair is genuine.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: naming the line that is wrong.
    """
    _require(path)
    expected = "template 1, template 2, label (0 or 1)"
    blocks = [
        (number_K3[:, :2].astype(np.int32), number_K3[:, 2] == 1)
        for number_K3 in number_blocks(path, (2**31 - 1, 2**31 - 1, 1), expected)
    ]
    if not any(len(labels) for _, labels in blocks):
        raise DamagedDataError(f"{path} holds no pairs")
    both = np.concatenate([ids for ids, _ in blocks])
    return both[:, 0].copy(), both[:, 1].copy(), np.concatenate([labels for _, labels in blocks])


def _read_faces(path: Path) -> tuple[list[str], Ints, Ints]:
    names, numbers = [], []
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 3 or not (is_number(fields[1]) and is_number(fields[2].removeprefix("-"))):
            raise _wrong(path, number, line, "image name, template id, media id")
        names.append(fields[0])
        numbers.append((int(fields[1]), int(fields[2])))
    if not names:
        raise DamagedDataError(f"{path} holds no faces")
    template_R, medium_R = np.array(numbers, np.int64).T
    return names, template_R, medium_R


def _read_scores(path: Path) -> tuple[dict[str, int], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Number of each image by name, its landmarks and its score."""
    number_of: dict[str, int] = {}
    values = []
    for number, line in _lines(path):
        name, *rest = line.split()
        try:
            row = [] if "_" in "".join(rest) else [float(field) for field in rest]
        except ValueError:
            row = []
        if len(row) != 11 or not all(abs(value) < _LARGEST for value in row):
            raise _wrong(path, number, line, "name, five landmarks x y, score")
        if not stays_inside(name):
            raise _wrong(path, number, line, "the name of an image in loose_crop")
        if name in number_of:
            raise _wrong(path, number, line, "an image that was not named before")
        number_of[name] = len(number_of)
        values.append(row)
    table = np.array(values, np.float32).reshape(-1, 11)
    return number_of, table[:, :10].reshape(-1, 5, 2), table[:, 10]


def _rows_of(id_N: Ints, template: Ints, path: Path) -> npt.NDArray[np.int32]:
    """Which template each id is."""
    row_N = np.searchsorted(template, id_N).astype(np.int32)
    wrong = template[np.minimum(row_N, len(template) - 1)] != id_N
    if wrong.any():
        missing = int(id_N[int(np.argmax(wrong))])
        raise DamagedDataError(f"{path}: names template {missing}, of which the face list has no image")
    return row_N


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    _require(path)
    for number, line in enumerate(text_lines(path, "surrogateescape"), 1):
        if line.strip():
            yield number, line.strip()


def _require(path: Path) -> None:
    if not path.is_file():
        raise MissingDataError(f"there is no list {path}; it belongs to the protocol's published files")


def _wrong(path: Path, number: int, line: str, expected: str) -> DamagedDataError:
    shown = line if len(line) <= 60 else line[:60] + "…"  # !r escapes what is no text
    return DamagedDataError(f"{path}, line {number}: {shown!r} is not {expected}")
