"""Write a pack of the InsightFace layout, identity by identity, that is whole or not there at all.

Everything grows in the hidden folder ``.making`` of the output and is moved into place at the end,
`train.rec` last: without it there is no pack. A journal there says, every few seconds, how long each file was
after the last finished identity; a later builder with the same plan cuts the files to those lengths and goes
on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from facerec.data import framing
from facerec.data.record import Record, pack
from facerec.errors import MissingDataError, StorageError, UserError, counted
from facerec.files import csv_lines

STAGE: Final = ".making"
REPORT: Final = "report.csv"
_GROWING: Final = (
    "train.rec",
    "train.idx",
    "train.lst",
    REPORT,
    "ranges",
)  # ranges: int64 keys, not published
_EVERY: Final = 2.0  # seconds between lines of the journal
_BUFFER: Final = 1 << 20


class Built(NamedTuple):
    """What a finished pack holds: pictures, identities, and how many pictures were left out."""

    pictures: int
    identities: int
    dropped: int

    def describe(self) -> str:
        """``12 pictures of 1 identity``."""
        return f"{counted(self.pictures, 'picture')} of {counted(self.identities, 'identity')}"


class PackBuilder:
    """A pack in the making: ``add`` the pictures of an identity, ``end_identity``, …, ``finish``.

    Keys are 1, 2, … and labels 0, 1, … in the order of adding; an identity without pictures takes no label.
    As a context manager it gives up at an exception: what can be resumed stays for the next run, anything
    else is removed. Whatever pack was in `out` before stays until `finish`.

    Args:
        out: the folder of the pack.
        size: (height, width) for the file `property`.
        force: whether a pack that is there may be replaced.
        plan: what decides the pack's content, JSON values; a builder stopped before with an equal plan is
            resumed. None: never resume.

    Raises:
        UserError: there is a pack already and no `force`, or somebody else is making one there.
        StorageError: `out` cannot be written, here and in every method.

    Attributes:
        resumed: the `mark` of the last identity that is already in, None where it starts from nothing.
    """

    def __init__(
        self, out: Path, size: tuple[int, int], *, force: bool = False, plan: dict[str, Any] | None = None
    ) -> None:
        self.out = out
        self.resumed: str | None = None
        self._size, self._plan = size, plan
        self._stage = out / STAGE
        self._files: dict[str, BinaryIO] = {}
        self._beside: list[str] = []
        self._at = dict.fromkeys(_GROWING, 0)
        self._key, self._label, self._dropped = 1, 0, 0
        self._first = 1  # key of the first picture of the identity under way
        self._last_line = time.monotonic()
        self._created = [folder for folder in (out, *out.parents) if not folder.exists()]
        refuse_overwriting(out / "train.rec", force)
        with self._storage():
            self._stage.mkdir(parents=True, exist_ok=True)
            self._require_own_stage()
            self._lock = (self._stage / "lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise UserError(f"{out}: another facerec-data is writing there; wait for it") from None
            try:
                self._start(self._found())
            except KeyboardInterrupt:  # before anybody could have entered the context
                self.__exit__(KeyboardInterrupt, None, None)
                raise

    # Adding -----------------------------------------------------------------------------------------------

    def add(self, name: str, payload: bytes | memoryview) -> None:
        """Append a picture of the identity under way: its relative path for the `.lst`, its encoded bytes."""
        self._record(self._key, Record(0, float(self._label), self._key, 0, payload))
        self._append("train.lst", f"{self._key}\t{self._label}\t{name}\n".encode("utf-8", "surrogateescape"))
        self._key += 1

    def note(self, picture: str, outcome: str, reason: str) -> None:
        """A line of the report; outcome ``dropped`` is counted."""
        self._dropped += outcome == "dropped"
        self._append(REPORT, csv_lines([(picture, outcome, reason)]))

    def end_identity(self, mark: str) -> None:
        """The identity is complete; `mark` is what `resumed` says where it is the last one."""
        if self._key > self._first:
            self._append("ranges", np.array([self._first, self._key], "<i8").tobytes())
            self._first = self._key
            self._label += 1
        if self._plan is not None and time.monotonic() - self._last_line > _EVERY:
            self._write_journal(mark)

    def beside(self, name: str) -> Path:
        """Where to write a file that shall appear together with the pack, under this name."""
        if name not in self._beside:
            self._beside.append(name)
        return self._stage / name

    def finish(self, reason: str = "") -> Built:
        """Write the identity records, and put the pack into its place.

        Args:
            reason: why there may be no picture, for the error.

        Raises:
            MissingDataError: no picture was added; nothing is put anywhere.
        """
        if self._key == 1:
            report = self._stage / REPORT
            with self._storage():
                self._flush()
                kept = self.out / REPORT
                report.replace(kept)
            self._remove()
            raise MissingDataError(
                f"{self.out}: no image is left to pack{reason and f' ({reason})'}; {kept} says why"
            )
        built = Built(self._key - 1, self._label, self._dropped)
        with self._storage():
            self._flush()
            range_C2 = np.fromfile(self._stage / "ranges", "<i8").reshape(-1, 2)
        for i, (first, end) in enumerate(range_C2):
            key = self._key + i
            self._record(key, Record(2, (float(first), float(end)), key, 0, b""))
        with self._storage():
            head = framing.frame(pack(self._head()))
            self._files["train.rec"].seek(0)
            self._files["train.rec"].write(head)
            self._flush()
            (self._stage / "property").write_text(f"{self._label},{self._size[0]},{self._size[1]}\n", "ascii")
            self._close_files()
            with _undisturbed():
                self._publish()
        return built

    def _publish(self) -> None:
        """At any moment there is the old pack, none, or the new one."""
        (self.out / "train.rec").unlink(missing_ok=True)
        for name in (*_GROWING[1:-1], *self._beside, "property", "train.rec"):
            (self._stage / name).replace(self.out / name)
        self._remove()

    # Files ------------------------------------------------------------------------------------------------

    def _record(self, key: int, record: Record) -> None:
        try:
            framed = framing.frame(pack(record))
        except ValueError as problem:
            raise UserError(f"picture {key}: {problem}; leave it out") from None
        self._append("train.idx", b"%d\t%d\n" % (key, self._at["train.rec"]))
        self._append("train.rec", framed)

    def _append(self, name: str, content: bytes) -> None:
        try:
            self._files[name].write(content)
        except OSError as problem:
            raise self._failed(problem) from None
        self._at[name] += len(content)

    def _head(self) -> Record:
        """Record 0; written first with a guess, and again when the numbers are known."""
        return Record(2, (float(self._key), float(self._key + self._label)), 0, 0, b"")

    def _require_own_stage(self) -> None:
        """Raise `UserError` where writing to the stage would write elsewhere, or wait for a reader."""
        with os.scandir(self._stage) as entries:
            strange = [entry.path for entry in entries if not entry.is_file(follow_symlinks=False)]
        for path in [str(self._stage)] if self._stage.is_symlink() else strange[:1]:
            raise UserError(f"{path}: is a link or no file, and nothing of facerec-data; remove it")

    def _found(self) -> dict[str, Any] | None:
        """The last line of a journal of the same plan, whose files are all there and long enough."""
        try:
            plan, *lines = (self._stage / "journal").read_text("utf-8").splitlines()
            if self._plan is None or json.loads(plan) != json.loads(json.dumps(self._plan)):
                return None
            for line in reversed(lines):
                with contextlib.suppress(json.JSONDecodeError):  # the line that was being written
                    last: dict[str, Any] = json.loads(line)
                    sizes = {name: (self._stage / name).stat().st_size for name in _GROWING}
                    return last if all(sizes[name] >= last["at"][name] for name in _GROWING) else None
        except (OSError, ValueError):
            return None
        return None

    def _start(self, found: dict[str, Any] | None) -> None:
        for name in _GROWING:
            path = self._stage / name
            self._files[name] = path.open("r+b" if found else "w+b", buffering=_BUFFER)
            if found:
                self._files[name].truncate(found["at"][name])
                self._files[name].seek(0, os.SEEK_END)
        if found:
            self._at = found["at"]
            self._key, self._label, self._dropped = found["key"], found["label"], found["dropped"]
            self._first = self._key
            self.resumed = found["mark"]
            return
        (self._stage / "journal").write_text(f"{json.dumps(self._plan)}\n", "utf-8")
        self._record(0, self._head())
        self._append(REPORT, csv_lines([("picture", "outcome", "reason")]))

    def _write_journal(self, mark: str) -> None:
        with self._storage():
            self._flush()
            line = {"at": self._at, "key": self._key, "label": self._label, "dropped": self._dropped}
            with (self._stage / "journal").open("a", encoding="utf-8") as journal:
                journal.write(f"{json.dumps({**line, 'mark': mark})}\n")
                journal.flush()
                os.fsync(journal.fileno())
        self._last_line = time.monotonic()

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def _close_files(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk fails the last flush too; it was said before
                file.close()
        self._files = {}

    def _remove(self) -> None:
        """Remove the stage, and the folders made for it where nothing else came to lie in them."""
        self._close_files()
        shutil.rmtree(self._stage, ignore_errors=True)
        self._lock.close()
        for folder in self._created:
            with contextlib.suppress(OSError):  # not empty: the pack is in it
                folder.rmdir()

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._failed(problem) from None

    def _failed(self, problem: OSError) -> StorageError:
        return StorageError(f"{self.out}: cannot write: {problem.strerror}; nothing there was changed")

    def __enter__(self) -> PackBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if self._lock.closed:
            return
        if self._plan is not None and (self._stage / "journal").exists() and self._worth_keeping():
            self._close_files()
            self._lock.close()
        else:
            self._remove()

    def _worth_keeping(self) -> bool:
        return len((self._stage / "journal").read_text("utf-8").splitlines()) > 1


def refuse_overwriting(path: Path, force: bool) -> None:
    """Raise `UserError` where `path` is there and may not be replaced."""
    if path.exists() and not force:
        raise UserError(f"{path}: is already there; --force replaces it")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM for a few renames."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
