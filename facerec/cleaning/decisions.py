"""What is to become of images and identities: a list in CSV that one edits, and the labels it leads to.

Shape suffixes: N images, C identities.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from facerec.errors import UserError
from facerec.files import csv_lines
from facerec.images.images import LabelledImages
from facerec.packs.text import is_number, text_lines

NAME: Final = "decisions.csv"
KEEP: Final = "keep"
KINDS: Final = {
    "damaged": "drop",
    "duplicate": "drop",
    "outlier": "drop",
    "mixed": "split",
    "merge": "merge",
    "leak": "drop",
}  # with what is proposed


class Decision(NamedTuple):
    """A line of the list.

    Attributes:
        kind: one of `KINDS`.
        proposal: what was found right: ``drop``, ``split``, ``merge``, or ``keep`` where it cannot be said.
        action: what is applied: the proposal, or ``keep``.
        number: of the image, from 0; where `image` is empty, of the identity.
        identity, image: their names.
        cosine, least: what was measured, and what it was to reach.
        other, other_number: the image, or identity, that it is like.
        reason: in words.
    """

    kind: str
    proposal: str
    action: str
    number: int
    identity: str
    image: str
    cosine: float | None = None
    least: float | None = None
    other: str = ""
    other_number: int | None = None
    reason: str = ""


def write_decisions(decisions: Iterable[Decision]) -> bytes:
    """The list as CSV: a line for the columns, then one per decision; cosines with four digits."""
    return csv_lines([Decision._fields, *(map(_digits, decision) for decision in decisions)])


def _digits(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else value


def read_decisions(path: Path, faces: LabelledImages) -> list[Decision]:
    """Read a list, edited or not; the columns kind, proposal, cosine, least and reason say nothing here.

    Raises:
        MissingDataError, DamagedDataError: it is not there, or not in UTF-8.
        UserError: naming the line with another action than ``keep``, ``drop``, ``split`` and ``merge``, or a
            number that is not that image or identity of `faces`.
    """
    table = csv.DictReader(io.StringIO("\n".join(text_lines(path, "surrogateescape")), newline=""))
    try:
        missing = set(Decision._fields) - set(table.fieldnames or ())
        rows = [(f"{path}, line {table.line_num}", row) for row in table]
    except csv.Error as error:
        raise UserError(
            f"{path}, after line {table.line_num}: is no CSV ({error}); take it from {NAME}"
        ) from None
    if missing:
        raise UserError(f"{path}, line 1: lacks the column {sorted(missing)[0]}; take it from {NAME}")
    first_C = faces.first_images()
    decisions = []
    for where, row in rows:
        given: dict[str, Any] = {key: row[key] or "" for key in Decision._fields}
        if given["action"] not in {KEEP, *KINDS.values()}:
            raise UserError(f"{where}: action {given['action']!r} is not keep, drop, split or merge")
        number = _number(given["number"], where, "number")
        other = _number(given["other_number"], where, "other_number") if given["other_number"] else None
        is_image = given["image"] != ""
        if number >= (len(faces) if is_image else faces.num_classes):
            raise UserError(f"{where}: {faces.root} has no number {number}; is the list of another pack?")
        own = faces.name(number) if is_image else faces.label(int(first_C[number]))
        said = given["image"] if is_image else given["identity"]
        if own not in (said, said.removeprefix("'")):
            raise UserError(f"{where}: number {number} is {own}, not {said}; is the list of another pack?")
        if given["action"] == "merge" and (is_image or other is None or other >= faces.num_classes):
            raise UserError(f"{where}: merge needs an identity, and the other_number of one of {faces.root}")
        if given["action"] == "merge" and other == number:
            raise UserError(
                f"{where}: merge needs two identities, and number and other_number are both {number}"
            )
        if given["action"] == "split" and not (is_image and given["other"]):
            raise UserError(f"{where}: split needs an image, and in other the name of its new identity")
        given |= {"number": number, "cosine": None, "least": None, "other_number": other}
        decisions.append(Decision(**given | {"other": given["other"].removeprefix("'")}))
    return decisions


def _number(text: str, where: str, column: str) -> int:
    if not is_number(text, 18):
        raise UserError(f"{where}: {column} {text!r} is no number; leave it as it was")
    return int(text)


def new_labels(
    faces: LabelledImages, decisions: Sequence[Decision]
) -> tuple[np.ndarray, dict[int, str], list[tuple[str, str, str]]]:
    """The labels that the actions lead to: images are dropped and split off first, identities merged then.

    Of identities to be merged all become one, also by way of others; it has the name of the one that the last
    of them was merged into.

    Returns:
        New labels (N,), −1 for images left out; names of identities that are new or get others' images; and
        what was left out, how and why, as `relabel` notes it.
    """
    label_N = np.array(faces.label_N, np.int64)
    left_out: list[tuple[str, str, str]] = []
    into: dict[int, int] = {}
    split: dict[tuple[int, str], int] = {}
    names: dict[int, str] = {}
    first_C = faces.first_images()

    def root(label: int) -> int:
        while label in into:
            label = into[label]
        return label

    dropped = np.zeros(faces.num_classes, np.bool_)
    for one in decisions:
        if one.action == "drop":
            if label_N[one.number] < 0 if one.image else dropped[one.number]:
                continue  # said before, for another reason
            outcome = "dropped" if one.image else "identity dropped"
            left_out.append((one.image or one.identity, outcome, f"{one.kind}: {one.reason}"))
            if one.image:
                label_N[one.number] = -1
            else:
                dropped[one.number] = True
        elif one.action == "split":
            key = (int(faces.label_N[one.number]), one.other)
            new = split.setdefault(key, faces.num_classes + len(split))
            names[new] = one.other
            if label_N[one.number] >= 0:
                label_N[one.number] = new
        elif one.action == "merge" and one.other_number is not None:
            source, target = root(one.number), root(one.other_number)
            if source != target:
                into[source] = target
    table_C = np.arange(faces.num_classes + len(split))
    for source in into:
        table_C[source] = target = root(source)
        names[target] = faces.label(int(first_C[target]))
    label_N = np.where(label_N >= 0, table_C[label_N], -1)
    label_N[dropped[np.asarray(faces.label_N)]] = -1
    return label_N, names, left_out
