"""Read everything there is in a pack, and find all that is damaged: framing, headers, labels, images.

With an index, every record is expected where the index says and to end where the next one begins, so that a
wrong length differs from a wrong beginning. Without one the file is walked, after damage from the next offset
at which a record may begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, counted
from facerec.images.decode import decode
from facerec.packs import framing, labels
from facerec.packs.framing import Record, unpack
from facerec.packs.index import RecordIndex, default_path, read_index, strays
from facerec.packs.recordio import RecordReader
from facerec.packs.verification import load_verification
from facerec.progress import Bar
from facerec.threads import cores, ordered_map

_CHUNK = 64  # records a thread reads at a time


class Finding(NamedTuple):
    """Damage, e.g. at ``key 17 at offset 90112``, and the number of records that are lost by it."""

    where: str
    reason: str
    records: int = 1


class Progress(NamedTuple):
    """The contents of one more piece of the file."""

    records: int  # damaged ones, too
    images: int
    findings: list[Finding]
    unlisted: int  # sound records that the index does not list
    done: int  # of the records of the index; without one of the bytes of the file
    sound: Sequence[tuple[int, int, int]] = ()  # key, offset, label of sound images; none for a `.bin`

    @property
    def damaged(self) -> int:
        """The number of records that are lost."""
        return sum(finding.records for finding in self.findings)


class _Expected(NamedTuple):
    """A record: where it is expected, and where the next one begins."""

    key: int
    offset: int
    end: int


class _Piece(NamedTuple):
    """Records checked in one task, `Progress.done` after them, and whether they go by key or by number."""

    expected: list[_Expected]
    done: int
    naming: str = "key"

    def where(self, record: _Expected) -> str:
        return f"{self.naming} {record.key} at offset {record.offset}"


def audit(
    path: Path,
    index_path: Path | None = None,
    *,
    images: bool = True,
    workers: int | None = None,
    title: str = "checking",
) -> Iterator[Progress]:
    """Check a `.rec` record by record, or the images of a verification pack (`.bin`), behind a bar.

    Args:
        index_path: the `.idx` of a `.rec`; default: beside it. It is neither rebuilt nor changed; where there
            is none, or none that can be read (a finding), the file is walked and records go by number.
        images: decode every image too.
        workers: threads; default: one per core.
        title: of the bar, before the file's name.

    Raises:
        MissingDataError: where there is no such file, or no index of the name given.
        DamagedDataError: where a `.bin` cannot be read at all.
    """
    total, pieces = _pieces(path, index_path, images, workers or cores())
    with Bar(total=total, desc=f"{title} {path.name}", unit_scale=True, delay=0.5) as bar:
        for piece in pieces:
            yield piece
            bar.update(piece.done - bar.n)


def _pieces(
    path: Path, index_path: Path | None, images: bool, threads: int
) -> tuple[int, Iterator[Progress]]:
    """All work to be done, in the unit of `Progress.done`, and its progress, piece by piece, in order."""
    if path.suffix == ".bin":
        return _audit_verification(path, threads)
    if index_path is not None and not index_path.is_file():
        raise MissingDataError(
            f"{index_path}: there is no such index; leave it out to check {path.name} without"
        )
    reader = RecordReader(path)
    index, first = _usable_index(index_path or default_path(path), reader.view)
    insightface = _is_insightface(reader, index)

    def check(piece: Progress | _Piece) -> Progress:
        return piece if isinstance(piece, Progress) else _check(reader.view, piece, images, insightface)

    total = len(reader.view) if index is None else len(index)
    pieces = _walked(reader.view, first) if index is None else _indexed(reader.view, index)
    return total, ordered_map(check, pieces, threads)


def _usable_index(path: Path, view: memoryview) -> tuple[RecordIndex | None, list[Finding]]:
    """The index, or what is wrong with it; one that only goes beyond the file's end is used."""
    if not path.is_file():
        return None, []
    try:
        index = read_index(path)
    except DamagedDataError as problem:
        return None, [Finding(path.name, str(problem))]
    inside_N = index.offset_N[index.offset_N < len(view)]
    trouble = strays(RecordIndex({"offset": inside_N}, 0, "parsed"), view) if len(inside_N) else None
    trouble = trouble if len(index) or not len(view) else "it lists no records"
    return (None, [Finding(path.name, f"{trouble}; it was left aside")]) if trouble else (index, [])


def _indexed(view: memoryview, index: RecordIndex) -> Iterator[Progress | _Piece]:
    """The records of an index, in file order."""
    offset_N = index.offset_N
    order_N = np.argsort(offset_N, kind="stable")
    inside = int(np.count_nonzero(offset_N + 8 <= len(view)))
    for start in range(0, inside, _CHUNK):
        row_K = order_N[start : start + _CHUNK + 1]
        offsets = [min(offset, len(view)) for offset in offset_N[row_K].tolist()] + [len(view)]
        keys = index.keys_at(row_K).tolist()
        expected = [_Expected(key, *pair) for key, pair in zip(keys, pairwise(offsets), strict=True)]
        expected = expected[: min(_CHUNK, inside - start)]
        yield _Piece(expected, start + len(expected))
    beyond = len(index) - inside
    if beyond:
        row_K = order_N[inside:]
        keys = index.keys_at(row_K[[0, -1]]).tolist()
        named = f"key {keys[0]}" if beyond == 1 else f"keys {keys[0]} … {keys[1]} ({beyond} records)"
        where = f"{named} at offset {int(offset_N[row_K[0]])}{' and up' if beyond > 1 else ''}"
        reason = (
            f"beyond the file's {counted(len(view), 'byte')}: it is cut off, or the index is another file's"
        )
        yield Progress(beyond, 0, [Finding(where, reason, beyond)], 0, len(index))


def _walked(view: memoryview, first: list[Finding]) -> Iterator[Progress | _Piece]:
    """The records of a file without index, numbered as they come; framing damage is found right here."""
    if first:
        yield Progress(0, 0, first, 0, 0)
    offset, number = 0, 0
    while offset < len(view):
        expected: list[_Expected] = []
        damage = None
        try:
            for begin, end in islice(framing.walk(view, offset), _CHUNK):
                expected.append(_Expected(number, begin, min(end, len(view))))
                offset, number = end, number + 1
        except framing.Broken as broken:
            damage = broken
        if expected:
            yield _Piece(expected, offset, "record")
        if damage is not None:
            reached = framing.next_record(view, max(damage.offset, offset) + 4)
            reason = f"{damage.where(offset)}; {reached - offset} bytes up to the next record are lost"
            yield Progress(1, 0, [Finding(f"record {number} at offset {offset}", reason)], 0, reached)
            offset, number = reached, number + 1


def _check(view: memoryview, piece: _Piece, images: bool, insightface: bool) -> Progress:
    """Read the records of one piece."""
    findings: list[Finding] = []
    unlisted, seen = 0, 0
    sound: list[tuple[int, int, int]] = []
    for expected in piece.expected:
        try:
            raw, end = framing.assemble(view, expected.offset)
            if expected.end == expected.offset:
                raise DamagedDataError("the index gives this offset to another key, too")
            unlisted += _between(view, end, expected.end)
            record = unpack(raw)
            if insightface and record.flag == 2 and not len(record.payload):
                continue
            seen += 1
            sound.append((expected.key, expected.offset, _check_image(record, images)))
        except framing.Broken as broken:
            findings.append(Finding(piece.where(expected), broken.where(expected.offset)))
        except DamagedDataError as problem:
            findings.append(Finding(piece.where(expected), str(problem)))
    return Progress(len(piece.expected), seen, findings, unlisted, piece.done, sound)


def _between(view: memoryview, end: int, following: int) -> int:
    """The number of complete records between a record's end and the next one; raises for anything else."""
    count, at = 0, end
    while at < following and framing.begins(view, at):
        _, at = framing.assemble(view, at)
        count += 1
    if at < following == len(view):
        raise DamagedDataError(f"it ends at {end}, and what follows up to the file's end is no record")
    if at != following < len(view):
        raise DamagedDataError(
            f"its length is wrong: it ends at {end}, the next record begins at {following}"
        )
    return count


def _check_image(record: Record, images: bool) -> int:
    """The label of a sound image; raises DamagedDataError."""
    label = record.first_label
    if not labels.are_labels(label):
        raise DamagedDataError(f"label {label:g} is not {labels.RULE}")
    if not len(record.payload):
        raise DamagedDataError("holds no image")
    if images:
        decode(record.payload)
    return int(label)


def _is_insightface(reader: RecordReader, index: RecordIndex | None) -> bool:
    """Return True if record 0 announces identity records, so that records without an image are in order."""
    try:
        head = reader.record_at(0 if index is None else index.offset_N.item(index.row(0)))
    except (DamagedDataError, KeyError):
        return False
    return head.flag == 2 and not len(head.payload)


def _audit_verification(path: Path, threads: int) -> tuple[int, Iterator[Progress]]:
    """Decode the distinct images of a verification pack."""
    pack = load_verification(path)
    count = len(pack.images)

    def check(start: int) -> Progress:
        findings = []
        end = min(start + _CHUNK, count)
        for image in range(start, end):
            try:
                decode(pack.images[image])
            except DamagedDataError as problem:
                findings.append(Finding(pack.where(image), str(problem)))
        return Progress(end - start, end - start, findings, 0, end)

    return count, ordered_map(check, range(0, count, _CHUNK), threads)
