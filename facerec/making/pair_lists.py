"""Lists of pairs and of people that others made: LFW's `pairs.txt` and `people.txt`, and CSV files.

Each reader raises MissingDataError where there is no such file, and DamagedDataError where a line, which it
names, is not as it must be, or nothing is listed.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from facerec.errors import DamagedDataError, counted
from facerec.packs.text import is_number, stays_inside, text_lines

_log = logging.getLogger(__name__)
_YES = {"1", "true", "same", "yes", "1.0"}
_NO = {"0", "false", "different", "no", "0.0", "-1"}


class Pair(NamedTuple):
    """The paths of two images, and True if they show one identity."""

    first: str
    second: str
    same: bool


class Folds(NamedTuple):
    """Pairs in the order of the file, and their number of folds, where the list gives it."""

    pairs: list[Pair]
    folds: int | None


def lfw_image(name: str, number: int) -> str:
    """The path of an image of LFW."""
    return f"{name}/{name}_{number:04d}.jpg"


def read_pairs_txt(path: Path, folds: int | None = None) -> Folds:
    """Read LFW's `pairs.txt`: per fold as many pairs ``name i j`` as impostor pairs ``name i name j``.

    Args:
        folds: their number in a list without a first line that says it (RFW).
    """
    lines = _lines(path)
    if folds is None:
        number, fields = next(lines, (1, []))
        if len(fields) == 1 and is_number(fields[0]):  # view 1: one fold
            fields = ["1", *fields]
        if len(fields) != 2 or not all(is_number(field) and int(field) for field in fields):
            raise _wrong(path, number, "must be folds<TAB>pairs per class per fold")
        folds, per_class = map(int, fields)
    else:
        listed = list(lines)
        lines, per_class = iter(listed), len(listed) // (2 * folds)
        if not listed or len(listed) % (2 * folds):
            raise DamagedDataError(
                f"{path}: holds {counted(len(listed), 'pair')}, not {folds} equal folds; get it again"
            )
    pairs: list[Pair] = []
    contradicted: list[tuple[int, Pair]] = []
    for number, fields in lines:
        same = len(pairs) // per_class % 2 == 0
        if len(fields) != (3 if same else 4):
            wanted = "name<TAB>i<TAB>j" if same else "name<TAB>i<TAB>name<TAB>j"
            raise _wrong(path, number, f"must be {wanted}")
        first, i, *second, j = fields
        if not (is_number(i) and is_number(j)):
            raise _wrong(path, number, "the images must be numbers")
        for name in (first, *second):
            _require_folder(path, number, name)
        pairs.append(Pair(lfw_image(first, int(i)), lfw_image([first, *second][-1], int(j)), same))
        if second == [first]:
            contradicted.append((number, pairs[-1]))
    announced = 2 * folds * per_class
    if len(pairs) != announced:
        raise DamagedDataError(
            f"{path}: holds {counted(len(pairs), 'pair')}, its first line announces {announced:,}; "
            "get it again"
        )
    _warn(path, contradicted, "of one identity")
    return Folds(pairs, folds)


def read_people_txt(path: Path) -> list[dict[str, int]]:
    """Read LFW's `people.txt`: of each set, the names and their numbers of images."""
    lines = _lines(path)
    number = 0

    def count(of: str) -> int:
        nonlocal number
        number, fields = next(lines, (number + 1, []))
        if len(fields) != 1 or not is_number(fields[0]):
            raise _wrong(path, number, f"must be the number of {of}")
        return int(fields[0])

    sets: list[dict[str, int]] = []
    for _ in range(count("sets")):
        people: dict[str, int] = {}
        for _ in range(count("people of a set")):
            number, fields = next(lines, (number + 1, []))
            if len(fields) != 2 or not is_number(fields[1]):
                raise _wrong(path, number, "must be name<TAB>number of images")
            _require_folder(path, number, fields[0])
            if any(fields[0] in known for known in (*sets, people)):
                raise _wrong(path, number, f"{fields[0]!r:.60} is on an earlier line already")
            people[fields[0]] = int(fields[1])
        sets.append(people)
    return sets


def read_csv(path: Path) -> list[Pair]:
    """Read a CSV of two paths and a label: 1, true, same or yes for one identity; 0, false, different or no.

    A first line without a dot or a slash in its paths is taken for a header.
    """
    pairs: list[Pair] = []
    contradicted: list[tuple[int, Pair]] = []
    for number, fields in _csv_lines(path):
        label = fields[-1].lower()
        if len(fields) == 3 and number == 1 and not any(sign in "".join(fields[:2]) for sign in "./"):
            continue  # a header: paths have an ending
        if len(fields) != 3 or label not in _YES | _NO or not all(fields):
            raise _wrong(path, number, "must be path,path,label with a label of 1 (same) or 0 (different)")
        pairs.append(Pair(fields[0], fields[1], label in _YES))
        if label in _NO and PurePosixPath(fields[0]).parent == PurePosixPath(fields[1]).parent:
            contradicted.append((number, pairs[-1]))
    if not pairs:
        raise DamagedDataError(f"{path}: holds no pairs; its lines must be path,path,label")
    if len({PurePosixPath(one).parent for pair in pairs for one in pair[:2]}) > 1:  # folders are identities
        _warn(path, contradicted, "of one folder")
    return pairs


def read_labels(path: Path) -> dict[str, list[str]]:
    """Read a CSV of lines ``path,label``: the paths of each label, in the order of the list.

    A path must lie below the folder and be listed once. A first line whose path has no dot and no slash is
    taken for a header.
    """
    labels: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for number, fields in _csv_lines(path):
        if len(fields) == 2 and number == 1 and not any(sign in fields[0] for sign in "./"):
            continue
        if len(fields) != 2 or not all(fields):
            raise _wrong(path, number, "must be path,label")
        image, label = fields
        if not stays_inside(image):
            raise _wrong(path, number, f"{image!r:.60} must be a path below the folder")
        _require_folder(path, number, label)
        if image in lines:
            raise _wrong(path, number, f"lists {image!r:.60}, as line {lines[image]} does")
        lines[image] = number
        labels.setdefault(label, []).append(image)
    if not labels:
        raise DamagedDataError(f"{path}: labels no images; its lines must be path,label")
    return labels


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of every line of a CSV that is not blank."""
    for number, line in enumerate(text_lines(path), 1):
        try:
            fields = [field.strip() for field in next(csv.reader([line]), [])]
        except csv.Error as error:
            raise _wrong(path, number, f"is not CSV: {error}") from None
        if any(fields):
            yield number, fields


def read_names(path: Path) -> set[str]:
    """Read the names of people in any such list: `pairs.txt`, `people.txt`, or one name per line."""
    fields = {field.strip() for line in text_lines(path) for field in line.split("\t")}
    names = {field for field in fields if field and not field.isdecimal()}
    if not names:
        raise DamagedDataError(f"{path}: holds no names; give pairs.txt, people.txt or one name per line")
    return names


def read_entries(path: Path) -> list[str]:
    """Read the lines of a list, without blank ones and spaces around them."""
    entries = [line.strip() for line in text_lines(path) if line.strip()]
    if not entries:
        raise DamagedDataError(f"{path}: is empty; give one entry per line")
    return entries


def _warn(path: Path, contradicted: Sequence[tuple[int, Pair]], kind: str) -> None:
    """Warn of impostor pairs that seem to be genuine; accuracies measured on them are too low."""
    for number, pair in contradicted[:1]:
        _log.warning(
            "%s: %d impostor pairs are %s, such as line %d (%s, %s); are they genuine?",
            *(path, len(contradicted), kind, number, pair.first, pair.second),
        )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of every line that is not blank; tabs, or else spaces, separate them."""
    for number, line in enumerate(text_lines(path), 1):
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if any(fields):
            yield number, fields


def _require_folder(path: Path, number: int, name: str) -> None:
    """A name becomes a folder, which must lie where all others do."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise _wrong(path, number, f"{name!r:.60} is no name of a folder")


def _wrong(path: Path, number: int, hint: str) -> DamagedDataError:
    return DamagedDataError(f"{path}, line {number}: {hint}")
