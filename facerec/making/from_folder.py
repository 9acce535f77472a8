"""Make a pack of photographs: of a folder per identity, or of those that a list labels."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from facerec.errors import DamagedDataError, UserError
from facerec.images.decode import ENDINGS, read_file
from facerec.images.face_maker import FaceFile, FaceMaker
from facerec.loading.folders import Entries, folder_entries, identity_folders, require_inside
from facerec.loading.opening import warn_of_unaligned
from facerec.making.builder import Built, PackBuilder
from facerec.progress import Bar
from facerec.threads import ordered_map


class _Photograph(NamedTuple):
    """An entry of an identity's folder: its path below the root, and why it must not be opened, if so."""

    identity: str
    name: str
    reason: str


def pack_folder(
    folder: Path,
    out: Path,
    maker: FaceMaker,
    *,
    force: bool = False,
    workers: int = 1,
    only: list[str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    beside: Callable[[PackBuilder], None] | None = None,
) -> Built:
    """Pack ``folder/identity/photograph`` into the folder `out`; identities and files in the order of names.

    Names that begin with a dot are passed over. Every other file that gives no image stands in
    ``out/report.csv`` with the reason. A run that was stopped is taken up again by the next one with the same
    settings, where no folder changed meanwhile.

    Args:
        only: the identities to pack, sorted; default: all.
        labels: the photographs of each identity, paths below `folder`; None: those in its folder.
        beside: writes what shall appear with the pack (see `PackBuilder.beside`).

    Raises:
        MissingDataError: there is no such folder, or not one image in it that can be packed.
        UserError, StorageError: as of `PackBuilder`; or `out` lies in `folder`.
    """
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(
            f"{out}: lies in {folder}, and would be taken for an identity; choose a place outside"
        )
    if labels is not None:
        only = sorted(labels)
    there = identity_folders(folder) if only is None else Entries(only, [], {})
    identities = there.folders
    plan = {
        "folder": str(folder.absolute()),
        "identities": _digest(folder, identities, labels),
        "maker": astuple(replace(maker, detector=None)),
        "align": maker.detector is not None,
    }
    with PackBuilder(out, force=force, plan=plan) as builder:
        if maker.detector is None:
            warn_of_unaligned(folder, _sample(folder, identities, labels))
        done = 0
        if builder.resumed is not None:
            done = bisect_right(identities, builder.resumed)
        else:
            for name, reason in there.left_out.items():
                builder.note(name, "dropped", reason)

        def make(photograph: _Photograph) -> tuple[_Photograph, FaceFile]:
            return photograph, _face(maker, folder, photograph)

        photographs = (
            one for identity in identities[done:] for one in _photographs(folder, identity, labels)
        )
        faces = ordered_map(make, photographs, workers)
        groups = groupby(faces, key=lambda face: face[0].identity)
        title = f"packing {folder.name}"
        for identity, group in Bar(groups, title, total=len(identities), initial=done, unit=" identities"):
            for photograph, face in group:
                if face.note or face.found:
                    details = (f"{face.found.score:.4f}", *map(round, face.found.box)) if face.found else ()
                    outcome = "packed" if face.payload else "dropped"
                    builder.note(photograph.name, outcome, face.note, *details)
                if face.payload:
                    name = photograph.name
                    if labels is not None:  # the folder of a name is its identity
                        name = f"{identity}/{name.replace('/', '_')}"
                    builder.add(name, face.payload)
            builder.end_identity(identity)
        if beside is not None:
            beside(builder)
        return builder.finish()


def _face(maker: FaceMaker, folder: Path, photograph: _Photograph) -> FaceFile:
    """The face in a file, or why there is none."""
    path = folder / photograph.name
    if photograph.reason:
        return FaceFile(None, photograph.reason)
    if path.suffix.lower() not in ENDINGS:
        return FaceFile(None, f"its ending is not one of {', '.join(ENDINGS)}")
    if any(sign in photograph.name for sign in "\t\n\r"):
        return FaceFile(None, "its name holds a tab or a line break, which a .lst cannot")
    try:
        require_inside(path, folder)
        encoded = read_file(path)
    except OSError as error:
        return FaceFile(None, f"cannot be read: {error.strerror}")
    except DamagedDataError as error:
        return FaceFile(None, str(error))
    return maker.make(encoded)


def _photographs(
    folder: Path, identity: str, labels: Mapping[str, Sequence[str]] | None
) -> Iterator[_Photograph]:
    """Yield what is labelled, else every entry of an identity's folder, for an empty one the folder."""
    if labels is not None:
        yield from (_Photograph(identity, path, "") for path in labels[identity])
        return
    try:
        there = folder_entries(folder / identity, folder)
    except OSError as error:
        yield _Photograph(identity, identity, f"the folder cannot be read: {error.strerror}")
        return
    reasons = dict.fromkeys(there.files, "") | there.left_out
    reasons |= dict.fromkeys(there.folders, "a folder; only what lies right in an identity's counts")
    for file in sorted(reasons):
        yield _Photograph(identity, f"{identity}/{file}", reasons[file])
    if not reasons:
        yield _Photograph(identity, identity, "the folder holds no images that can be read")


def _sample(
    folder: Path, identities: list[str], labels: Mapping[str, Sequence[str]] | None
) -> Iterator[bytes]:
    """Yield the first image of some identities, evenly spread."""
    for identity in identities[:: max(len(identities) // 16, 1)]:
        there = (one.name for one in _photographs(folder, identity, labels) if not one.reason)
        for name in islice(filter(lambda name: name.lower().endswith(ENDINGS), there), 1):
            with contextlib.suppress(OSError, DamagedDataError):  # it will stand in the report
                yield read_file(folder / name)


def _digest(folder: Path, identities: list[str], labels: Mapping[str, Sequence[str]] | None) -> str:
    """A digest that changes when an identity's folder or listed file comes, goes or changes."""
    digest = hashlib.sha256()
    for identity in identities:
        for path in [identity] if labels is None else labels[identity]:
            time = 0  # of what is not there, which the report will say
            with contextlib.suppress(OSError):
                time = (folder / path).stat().st_mtime_ns
            digest.update(f"{identity}\t{path}/{time}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
