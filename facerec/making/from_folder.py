"""A folder with a sub-folder of photographs for each person becomes a pack."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from facerec.errors import DamagedDataError, MissingDataError, UserError
from facerec.images.decode import ENDINGS, read_file
from facerec.images.face_maker import FaceFile, FaceMaker
from facerec.loading.named import Entries, folder_entries, warn_of_unaligned
from facerec.making.builder import Built, PackBuilder
from facerec.threads import in_order


class Photograph(NamedTuple):
    """One entry of an identity's folder: its last or not, and why it must not be opened, if it must not."""

    identity: str
    file: str
    last: bool
    reason: str

    @property
    def name(self) -> str:
        """Its path below the folder of identities, as in a `.lst`."""
        return f"{self.identity}/{self.file}" if self.file else self.identity


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
        folder: it holds a folder of photographs for each identity.
        out: the folder of the pack; made where it is missing.
        maker: makes the faces.
        force: replace a pack that is there.
        workers: threads.
        only: the identities to pack, sorted; default: all.
        beside: writes what shall appear together with the pack (see `PackBuilder.beside`).

    Raises:
        MissingDataError: there is no such folder, or not one image in it that can be packed.
        UserError: `out` holds a pack already and no `force`, or lies in `folder`.
        StorageError: `out` cannot be written.
    """
    from tqdm import tqdm

    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out}: lies in {folder}, and would be taken for a person; choose a place outside")
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
        done = 0 if builder.resumed is None else bisect_right(identities, builder.resumed)
        for name, reason in there.left_out.items() if builder.resumed is None else ():
            builder.note(name, "dropped", reason)

        def make(photograph: Photograph) -> tuple[Photograph, FaceFile]:
            if photograph.reason:
                return photograph, FaceFile(None, photograph.reason)
            return photograph, make_file(maker, folder / photograph.name)

        with tqdm(
            total=len(identities),
            initial=done,
            desc=f"packing {folder.name}",
            unit=" identities",
            disable=None,
        ) as bar:
            for photograph, made in in_order(make, _photographs(folder, identities[done:]), workers):
                if made.payload is None:
                    builder.note(photograph.name, "dropped", made.note)
                else:
                    if made.note:
                        builder.note(photograph.name, "packed", made.note)
                    builder.add(photograph.name, made.payload)
                if photograph.last:
                    builder.end_identity(photograph.identity)
                    bar.update()
        if beside is not None:
            beside(builder)
        return builder.finish()


def make_file(maker: FaceMaker, path: Path) -> FaceFile:
    """The face in a file, or why there is none."""
    if path.suffix.lower() not in ENDINGS:
        return FaceFile(None, f"its ending is not one of {', '.join(ENDINGS)}")
    if any(sign in str(path) for sign in "\t\n\r"):
        return FaceFile(None, "its name holds a tab or a line break, which a .lst cannot")
    try:
        encoded = read_file(path)
    except OSError as error:
        return FaceFile(None, f"cannot be read: {error.strerror}")
    except DamagedDataError as error:
        return FaceFile(None, str(error))
    return maker.make(encoded)


def identity_folders(folder: Path) -> Entries:
    """What lies in a folder of identities' folders, at least one of them.

    Raises:
        MissingDataError: there are none; the message says what is there instead.
    """
    wanted = f"{folder}: must hold a folder of images for each person"
    try:
        there = folder_entries(folder, folder)
    except OSError as error:
        raise MissingDataError(
            f"{folder}: {error.strerror}; give a folder that holds a folder of images for each person"
        ) from None
    if there.folders:
        return there
    if any(name.lower().endswith(ENDINGS) for name in there.files):
        raise MissingDataError(f"{wanted}; it holds loose images, move each person's into a folder")
    for name, reason in there.left_out.items():
        raise MissingDataError(f"{wanted}; it holds no folders, and {name} is {reason}")
    raise MissingDataError(f"{wanted}; it holds no folders")


def _photographs(folder: Path, identities: list[str]) -> Iterator[Photograph]:
    """Every entry of every identity's folder; one without file for an empty folder, to report it."""
    for identity in identities:
        try:
            there = folder_entries(folder / identity, folder)
            reasons = dict.fromkeys(there.files, "") | there.left_out
            reasons |= dict.fromkeys(there.folders, "a folder; only what lies right in an identity's counts")
        except OSError as error:
            reasons = {"": f"the folder cannot be read: {error.strerror}"}
        reasons = reasons or {"": "the folder holds no images that can be read"}
        last = max(reasons)
        for file in sorted(reasons):
            yield Photograph(identity, file, file == last, reasons[file])


def _sample(folder: Path, identities: list[str]) -> Iterator[bytes]:
    """The first image of some identities, evenly spread."""
    for identity in identities[:: max(len(identities) // 16, 1)]:
        for photograph in _photographs(folder, [identity]):
            if photograph.file.lower().endswith(ENDINGS) and not photograph.reason:
                with contextlib.suppress(OSError, DamagedDataError):  # it will stand in the report
                    yield read_file(folder / photograph.name)
                break


def _digest(folder: Path, identities: list[str]) -> str:
    """Changes when an identity's folder comes or goes, or a file in one of them does."""
    digest = hashlib.sha256()
    for identity in identities:
        digest.update(
            f"{identity}/{(folder / identity).stat().st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()
