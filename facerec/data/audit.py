"""Read everything there is in a pack, and find all that is damaged: framing, headers, labels, pictures.

With an index, every record is expected where the index says and to end where the next one begins, so that a
wrong length is told from a wrong beginning. Without one the file is walked, and after damage the walk goes on
at the next place where a record may begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facerec.data import framing
from facerec.data.decode import decode
from facerec.data.index import RecordIndex, default_path, read_index, strays
from facerec.data.record import Record, unpack
from facerec.data.recordio import RecordReader
from facerec.data.settings import cores
from facerec.data.verification import load_verification
from facerec.errors import DamagedDataError, MissingDataError

_CHUNK = 64  # records a thread reads at a time


class Finding(NamedTuple):
    """Something damaged.

    Attributes:
        place: ``key 17 at offset 90112``, or what else tells where it is.
        reason: what is wrong there.
        records: how many records are lost by it.
    """

    place: str
    reason: str
    records: int = 1


class Progress(NamedTuple):
    """What one more piece of the file held.

    Attributes:
        records: records read, whatever came of it.
        pictures: those that are pictures.
        findings: what is damaged among them.
        unlisted: sound records between them that the index does not list.
        done: how far into the work this piece reaches, of `Audit.total`.
        sound: (key, offset, label) of each picture that is not damaged; none for a `.bin`.
    """

    records: int
    pictures: int
    findings: list[Finding]
    unlisted: int
    done: int
    sound: Sequence[tuple[int, int, int]] = ()


class Audit(NamedTuple):
    """The whole work to do, in the unit of `Progress.done`, and its progress, piece by piece, in order."""

    total: int
    progress: Iterator[Progress]


class _Place(NamedTuple):
    """Where a record is expected, and where the next one begins."""

    key: int
    offset: int
    end: int


class _Piece(NamedTuple):
    """Records checked together, `Progress.done` after them, and whether they go by key or by number."""

    places: list[_Place]
    done: int
    naming: str = "key"


def audit(
    path: Path, index_path: Path | None = None, *, pictures: bool = True, workers: int | None = None
) -> Audit:
    """Check a `.rec` record by record, or the pictures of a verification pack (`.bin`).

    Args:
        path: the file.
        index_path: the `.idx` of a `.rec`; default: beside it. It is neither rebuilt nor changed; where there
            is none, or none that can be read (a finding), the file is walked and records go by number.
        pictures: decode every picture too.
        workers: threads; default: one a processor.

    Raises:
        MissingDataError: where there is no such file, or no index of the name given.
        DamagedDataError: where a `.bin` cannot be read at all.
    """
    threads = workers or cores()
    if path.suffix == ".bin":
        return _audit_verification(path, threads)
    reader = RecordReader(path)
    first: list[Finding] = []
    index = None
    if index_path is not None and not index_path.is_file():
        raise MissingDataError(
            f"{index_path}: there is no such index; leave it out to check {path.name} without"
        )
    index_path = index_path or default_path(path)
    if index_path.is_file():
        try:
            index = read_index(index_path)
        except DamagedDataError as problem:
            first = [Finding(index_path.name, str(problem))]
    if index is not None and len(reader.view):
        trouble = _useless(index, reader.view)
        if trouble is not None:
            first, index = [Finding(index_path.name, f"{trouble}; it was left aside")], None
    insightface = _is_insightface(reader, index)

    def check(piece: _Piece) -> Progress:
        return _check(reader.view, piece, pictures, insightface)

    if index is None:
        return Audit(len(reader.view), _in_threads(check, _walked(reader.view, first), threads))
    return Audit(len(index), _in_threads(check, _indexed(reader.view, index), threads))


def _useless(index: RecordIndex, view: memoryview) -> str | None:
    """Why an index says nothing about the file; one that only goes beyond the file's end still does."""
    if not len(index):
        return "it lists no records"
    inside_N = index.offset_N[index.offset_N < len(view)]
    if not len(inside_N):
        return None
    return strays(RecordIndex({"offset": inside_N}, 0, "parsed"), view)


def _in_threads(
    check: Callable[[_Piece], Progress], pieces: Iterator[Progress | _Piece], threads: int
) -> Iterator[Progress]:
    """Check pieces in threads, some ahead, and hand on in order; what is `Progress` already passes."""
    waiting: deque[Future[Progress] | Progress] = deque()
    with ThreadPoolExecutor(threads, "audit") as pool:
        for piece in pieces:
            waiting.append(piece if isinstance(piece, Progress) else pool.submit(check, piece))
            if len(waiting) > 4 * threads:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(waited: Future[Progress] | Progress) -> Progress:
    return waited if isinstance(waited, Progress) else waited.result()


def _indexed(view: memoryview, index: RecordIndex) -> Iterator[Progress | _Piece]:
    """The records of an index, in file order."""
    offset_N = index.offset_N
    order_N = np.argsort(offset_N, kind="stable") if (offset_N[1:] < offset_N[:-1]).any() else None
    inside = int(np.count_nonzero(offset_N + 8 <= len(view)))
    for start in range(0, inside, _CHUNK):
        row_K = np.arange(start, min(start + _CHUNK + 1, len(index)))
        row_K = row_K if order_N is None else order_N[row_K]
        offsets = [min(offset, len(view)) for offset in offset_N[row_K].tolist()] + [len(view)]
        keys = index.keys_at(row_K).tolist()
        places = [_Place(key, *pair) for key, pair in zip(keys, pairwise(offsets), strict=True)]
        places = places[: min(_CHUNK, inside - start)]
        yield _Piece(places, start + len(places))
    beyond = len(index) - inside
    if beyond:
        row_K = np.arange(inside, len(index)) if order_N is None else order_N[inside:]
        keys = index.keys_at(row_K[[0, -1]]).tolist()
        named = f"key {keys[0]}" if beyond == 1 else f"keys {keys[0]} … {keys[1]} ({beyond} records)"
        place = f"{named} at offset {int(offset_N[row_K[0]])}{' and up' if beyond > 1 else ''}"
        reason = f"beyond the file's {len(view)} bytes: it is cut off, or the index is another file's"
        yield Progress(beyond, 0, [Finding(place, reason, beyond)], 0, len(index))


def _walked(view: memoryview, first: list[Finding]) -> Iterator[Progress | _Piece]:
    """The records of a file without index, numbered as they come; framing damage is found right here."""
    if first:
        yield Progress(0, 0, first, 0, 0)
    offset, number = 0, 0
    places: list[_Place] = []
    while offset < len(view):
        try:
            for begin, end in framing.walk(view, offset):
                places.append(_Place(number, begin, min(end, len(view))))
                offset, number = end, number + 1
                if len(places) == _CHUNK:
                    yield _Piece(places, offset, "record")
                    places = []
        except framing.Broken as broken:
            if places:
                yield _Piece(places, offset, "record")
                places = []
            reached = framing.next_record(view, max(broken.offset, offset) + 4)
            reason = f"{broken.place(offset)}; {reached - offset} bytes up to the next record are lost"
            yield Progress(1, 0, [Finding(f"record {number} at offset {offset}", reason)], 0, reached)
            offset, number = reached, number + 1
    if places:
        yield _Piece(places, offset, "record")


def _check(view: memoryview, piece: _Piece, pictures: bool, insightface: bool) -> Progress:
    """Read the records of one piece."""
    findings: list[Finding] = []
    unlisted, seen = 0, 0
    sound: list[tuple[int, int, int]] = []
    for place in piece.places:
        try:
            raw, end = framing.assemble(view, place.offset)
            if place.end == place.offset:
                raise DamagedDataError("the index gives this offset to another key, too")
            unlisted += _between(view, end, place.end)
            record = unpack(raw)
            if insightface and record.flag == 2 and not len(record.payload):
                continue
            seen += 1
            sound.append((place.key, place.offset, _check_picture(record, pictures)))
        except framing.Broken as broken:
            findings.append(Finding(_named(piece, place), broken.place(place.offset)))
        except DamagedDataError as problem:
            findings.append(Finding(_named(piece, place), str(problem)))
    return Progress(len(piece.places), seen, findings, unlisted, piece.done, sound)


def _between(view: memoryview, end: int, following: int) -> int:
    """How many whole records lie between a record's end and the next one; raises for anything else."""
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


def _check_picture(record: Record, pictures: bool) -> int:
    """The label of a sound picture; raises DamagedDataError."""
    label = record.label[0] if isinstance(record.label, tuple) else record.label
    if not (label >= 0 and float(label).is_integer()):
        raise DamagedDataError(f"label {label:g} is not a whole number of 0 or more")
    if not len(record.payload):
        raise DamagedDataError("holds no picture")
    if pictures:
        decode(record.payload)
    return int(label)


def _is_insightface(reader: RecordReader, index: RecordIndex | None) -> bool:
    """Whether record 0 announces identity records, so that records without a picture are in order."""
    try:
        head = reader.record_at(0 if index is None else index.offset_N.item(index.row(0)))
    except (DamagedDataError, KeyError):
        return False
    return head.flag == 2 and not len(head.payload)


def _named(piece: _Piece, place: _Place) -> str:
    return f"{piece.naming} {place.key} at offset {place.offset}"


def _audit_verification(path: Path, threads: int) -> Audit:
    """Decode the distinct pictures of a verification pack."""
    pack = load_verification(path)

    def check(piece: _Piece) -> Progress:
        findings = []
        for place in piece.places:
            try:
                decode(pack.pictures[place.key])
            except DamagedDataError as problem:
                findings.append(Finding(pack.where(place.key), str(problem)))
        return Progress(len(piece.places), len(piece.places), findings, 0, piece.done)

    def pieces() -> Iterator[Progress | _Piece]:
        for start in range(0, count, _CHUNK):
            end = min(start + _CHUNK, count)
            yield _Piece([_Place(i, 0, 0) for i in range(start, end)], end)

    count = len(pack.pictures)
    return Audit(count, _in_threads(check, pieces(), threads))
