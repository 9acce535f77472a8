"""Write a pack of the InsightFace layout, identity by identity, that is complete or not there at all.

Everything grows in the hidden folder ``.making`` and is moved at the end, `train.rec` last: without it there
is no pack. A journal says every few seconds how long each file was after the last finished identity; a later
builder with the same plan cuts the files to those lengths and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, UserError, counted
from facerec.files import (
    csv_lines,
    publish,
    refuse_overwriting,
    replacing,
    resumable_staging,
    storing,
    sync,
    undisturbed,
)
from facerec.images.decode import read_header
from facerec.packs import framing
from facerec.packs.recordio import Record, RecordReader, append_record, pack

STAGE: Final = ".making"
REPORT: Final = "report.csv"
DETAILS: Final = ("score", "left", "top", "right", "bottom")  # of the face a detector found, in pixels
_JOURNAL: Final = "journal"
_GROWING: Final = ("train.rec", "train.idx", "train.lst", REPORT)
_EVERY: Final = 2.0  # seconds between two journals
_BUFFER: Final = 1 << 20


class Built(NamedTuple):
    """The contents of a finished pack: images, identities, and how many images were left out."""

    out: Path
    images: int
    identities: int
    dropped: int

    def __str__(self) -> str:
        return f"{self.out}: {counted(self.images, 'image')} of {counted(self.identities, 'identity')}"

    def print_dropped(self) -> None:
        """Say how many images were left out, if any."""
        if self.dropped:
            print(f"{self.dropped:,} left out; {self.out / REPORT} says why")


class PackBuilder:
    """A context in which a pack grows: ``add`` the images of an identity, ``end_identity``, …, ``finish``.

    Keys are 1, 2, … and labels 0, 1, … in the order of adding; an identity without images takes no label.
    After an exception what can be resumed stays for the next run, anything else is removed. Whatever pack was
    in `out` before stays until `finish`.

    Args:
        out: the folder of the pack.
        force: replace a pack that is there.
        plan: what decides the pack's content, JSON values; a builder stopped before with an equal plan is
            resumed. None: never resume.
        wait: for another builder of the same pack to end.

    Raises:
        UserError: there is a pack already and no `force`, or somebody else is making one there and no `wait`.
        StorageError: `out` cannot be written, in every method.

    Attributes:
        resumed: the `mark` of the last identity that is already in, None where it starts from nothing.
    """

    def __init__(
        self, out: Path, *, force: bool = False, plan: dict[str, Any] | None = None, wait: bool = False
    ) -> None:
        refuse_overwriting(out / "train.rec", force)
        self.out = out
        self.resumed: str | None = None
        self._plan, self._wait = plan, wait
        self._stage = out / STAGE
        self._journal = self._stage / _JOURNAL
        self._files: dict[str, BinaryIO] = {}
        self._beside: list[str] = []
        self._begins = array("q", [1])  # key of the first image of each identity, and of the one under way
        self._key, self._dropped = 1, 0
        self._offset = 0  # in train.rec
        self._journal_time = time.monotonic()

    def __enter__(self) -> PackBuilder:
        with storing(self.out), contextlib.ExitStack() as stack:
            try:
                stack.enter_context(resumable_staging(self._stage, _JOURNAL, wait=self._wait))
            except BlockingIOError:
                raise UserError(f"{self.out}: another facerec-data is writing there; wait for it") from None
            stack.callback(self._close)
            state = self._resumable()
            for name in _GROWING:
                self._files[name] = (self._stage / name).open("r+b" if state else "w+b", buffering=_BUFFER)
            self._resume(state) if state else self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Adding -----------------------------------------------------------------------------------------------

    def add(self, name: str, payload: bytes | memoryview) -> None:
        """Append an image of the identity under way: its relative path for the `.lst`, its encoded bytes."""
        label = len(self._begins) - 1
        with storing(self.out):
            self._record(self._key, Record(0, float(label), self._key, 0, payload))
            line = f"{self._key}\t{label}\t{name}\n"
            self._files["train.lst"].write(line.encode("utf-8", "surrogateescape"))
        self._key += 1

    def note(self, image: str, outcome: str, reason: str, *details: object) -> None:
        """Append a line to the report, with `DETAILS` or without; outcome ``dropped`` is counted."""
        self._dropped += outcome == "dropped"
        with storing(self.out):
            self._files[REPORT].write(
                csv_lines([(image, outcome, reason, *(details or [""] * len(DETAILS)))])
            )

    def end_identity(self, mark: str = "") -> None:
        """Complete the identity under way; `mark` becomes `resumed` where it is the last one."""
        if self._key > self._begins[-1]:
            self._begins.append(self._key)
        if self._plan is not None and time.monotonic() - self._journal_time > _EVERY:
            with storing(self.out):
                self._write_journal(mark)

    def beside(self, name: str) -> Path:
        """The path to write a file to that shall appear along with the pack, under this name."""
        if name not in self._beside:
            self._beside.append(name)
        return self._stage / name

    def finish(self, reason: str = "") -> Built:
        """Write the identity records, and move the pack to its names.

        Raises:
            MissingDataError: no image was added, for this `reason`; only the report is moved.
        """
        with storing(self.out):
            identities = len(self._begins) - 1
            for key, (first, end) in enumerate(pairwise(self._begins), self._key):
                self._record(key, Record(2, (float(first), float(end)), key, 0, b""))
            self._files["train.rec"].seek(0)
            self._files["train.rec"].write(framing.frame(pack(self._head())))
            self._flush()
            height, width = _size(self._stage / "train.rec")
            (self._stage / "property").write_text(f"{identities},{height},{width}\n", "ascii")
            self._close()
            if not identities:
                publish(self._stage, self.out, [REPORT])
                self._journal.unlink(missing_ok=True)
                because = f" ({reason})" if reason else ""
                raise MissingDataError(
                    f"{self.out}: no image is left to pack{because}; {self.out / REPORT} says why"
                )
            with undisturbed():  # at any moment there is the old pack, none, or the new one
                (self.out / "train.rec").unlink(missing_ok=True)
                publish(self._stage, self.out, (*_GROWING[1:], *self._beside, "property", "train.rec"))
                self._journal.unlink(missing_ok=True)
        return Built(self.out, self._key - 1, identities, self._dropped)

    # Files ------------------------------------------------------------------------------------------------

    def _record(self, key: int, record: Record) -> None:
        rec, idx = self._files["train.rec"], self._files["train.idx"]
        self._offset = append_record(rec, idx, key, self._offset, record)

    def _head(self) -> Record:
        """Record 0; written first with a guess, and again when the numbers are known."""
        return Record(2, (float(self._key), float(self._key + len(self._begins) - 1)), 0, 0, b"")

    def _start(self) -> None:
        self._journal.unlink(missing_ok=True)
        self._record(0, self._head())
        self._files[REPORT].write(csv_lines([("image", "outcome", "reason", *DETAILS)]))

    def _resumable(self) -> dict[str, Any] | None:
        """The journal, where it is of the same plan and all files are there and long enough."""
        try:
            state: dict[str, Any] = json.loads(self._journal.read_text("utf-8"))
            if self._plan is None or state["plan"] != json.loads(json.dumps(self._plan)):
                return None
            for name, size in zip(_GROWING, state["sizes"], strict=True):
                if (self._stage / name).stat().st_size < size:
                    return None
                os.truncate(self._stage / name, size)
            with (self._stage / "train.lst").open("rb") as lines:
                label_N = np.fromiter((int(line.split(b"\t", 2)[1]) for line in lines), np.int64)
            return state | {"begins": (np.flatnonzero(np.diff(label_N, append=-1)) + 2).tolist()}
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def _resume(self, state: dict[str, Any]) -> None:
        for file in self._files.values():
            file.seek(0, os.SEEK_END)
        self._begins.extend(state["begins"])
        self._key, self._offset = self._begins[-1], state["sizes"][0]
        self._dropped, self.resumed = state["dropped"], state["mark"]

    def _write_journal(self, mark: str) -> None:
        self._flush()
        sizes = [self._files[name].tell() for name in _GROWING]
        state = {"plan": self._plan, "mark": mark, "sizes": sizes, "dropped": self._dropped}
        with replacing(self._journal) as file:
            file.write(json.dumps(state).encode())
        self._journal_time = time.monotonic()

    def _flush(self) -> None:
        for file in self._files.values():
            sync(file)

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk fails the last flush too; it was said before
                file.close()
        self._files = {}


def _size(rec: Path) -> tuple[int, int]:
    """(height, width) of the first image of a pack whose header can be read, else of LFW's."""
    with RecordReader(rec) as reader:
        for payload in (record.payload for record in reader.records() if len(record.payload)):
            with contextlib.suppress(DamagedDataError):
                header = read_header(payload)
                return header.height, header.width
    return 112, 112
