"""Make a pack of a folder that holds one folder of photographs per identity."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from facerec.errors import DamagedDataError, UserError
from facerec.images.decode import ENDINGS, read_file
from facerec.images.face_maker import FaceFile, FaceMaker
from facerec.loading.folders import Entries, folder_entries, identity_folders
from facerec.loading.opening import warn_of_unaligned
from facerec.making.builder import Built, PackBuilder
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
    beside: Callable[[PackBuilder], None] | None = None,
) -> Built:
    """Pack ``folder/identity/photograph`` into the folder `out`; identities and files in the order of names.

    Names that begin with a dot are passed over. Every other file that gives no image stands in
    ``out/report.csv`` with the reason. A run that was stopped is taken up again by the next one with the same
    settings, where no folder changed meanwhile.

    Args:
        only: the identities to pack, sorted; default: all.
        beside: writes what shall appear with the pack (see `PackBuilder.beside`).

    Raises:
        MissingDataError: there is no such folder, or not one image in it that can be packed.
        UserError, StorageError: as of `PackBuilder`; or `out` lies in `folder`.
    """
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(
            f"{out}: lies in {folder}, and would be taken for an identity; choose a place outside"
        )
    there = identity_folders(folder) if only is None else Entries(only, [], {})
    identities = there.folders
    plan = {
        "folder": str(folder.absolute()),
        "identities": _digest(folder, identities),
        "maker": [maker.size, maker.quality, maker.keep, maker.detector is not None, maker.no_face],
    }
    with PackBuilder(out, (maker.size, maker.size), force=force, plan=plan) as builder:
        if maker.detector is None:
            warn_of_unaligned(folder, _sample(folder, identities))
        done = 0
        if builder.resumed is not None:
            done = bisect_right(identities, builder.resumed)
        else:
            for name, reason in there.left_out.items():
                builder.note(name, "dropped", reason)

        def make(photograph: _Photograph) -> tuple[_Photograph, FaceFile]:
            return photograph, _face(maker, folder, photograph)

        faces = ordered_map(make, _photographs(folder, identities[done:]), workers)
        groups = groupby(faces, key=lambda face: face[0].identity)
        title = f"packing {folder.name}"
        for identity, group in tqdm(
            groups, title, total=len(identities), initial=done, unit=" identities", disable=None
        ):
            for photograph, face in group:
                if face.note:
                    builder.note(photograph.name, "packed" if face.payload else "dropped", face.note)
                if face.payload:
                    builder.add(photograph.name, face.payload)
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
        encoded = read_file(path)
    except OSError as error:
        return FaceFile(None, f"cannot be read: {error.strerror}")
    except DamagedDataError as error:
        return FaceFile(None, str(error))
    return maker.make(encoded)


def _photographs(folder: Path, identities: list[str]) -> Iterator[_Photograph]:
    """Yield every entry of every identity's folder; for an empty folder the folder, to report it."""
    for identity in identities:
        try:
            there = folder_entries(folder / identity, folder)
        except OSError as error:
            yield _Photograph(identity, identity, f"the folder cannot be read: {error.strerror}")
            continue
        reasons = dict.fromkeys(there.files, "") | there.left_out
        reasons |= dict.fromkeys(there.folders, "a folder; only what lies right in an identity's counts")
        for file in sorted(reasons):
            yield _Photograph(identity, f"{identity}/{file}", reasons[file])
        if not reasons:
            yield _Photograph(identity, identity, "the folder holds no images that can be read")


def _sample(folder: Path, identities: list[str]) -> Iterator[bytes]:
    """Yield the first image of some identities, evenly spread."""
    for identity in identities[:: max(len(identities) // 16, 1)]:
        with contextlib.suppress(OSError, DamagedDataError):  # it will stand in the report
            for file in folder_entries(folder / identity, folder).images[:1]:
                yield read_file(folder / identity / file)


def _digest(folder: Path, identities: list[str]) -> str:
    """A digest that changes when an identity's folder comes or goes, or a file in one of them does."""
    digest = hashlib.sha256()
    for identity in identities:
        line = f"{identity}/{(folder / identity).stat().st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
