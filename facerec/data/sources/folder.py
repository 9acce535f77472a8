"""data.kind=folder: aligned pictures in a folder for each identity."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facerec.data.decode import ENDINGS, read_file
from facerec.data.faces import EncodedFaces, FaceSet
from facerec.data.pictures import folder_entries, warn_left_out
from facerec.data.settings import DataSettings
from facerec.data.sources import SOURCES, existing_root
from facerec.errors import DamagedDataError, MissingDataError, counted, require

log = logging.getLogger(__name__)


class FolderFaces(EncodedFaces):
    """The pictures ``root/identity/picture``, identities and pictures in the order of their names.

    Args:
        root: the folder; its sub-folders are the identities. Names that begin with a dot, files that are no
            pictures by their ending, and folders without pictures are passed over; links that lead out of
            `root` and special files are too, with a warning.
        name: for logs; default: the folder's name.
        min_images: leave out identities with fewer pictures.

    Raises:
        MissingDataError: there are no pictures in sub-folders.
    """

    classes: list[str]

    def __init__(self, root: Path, name: str | None = None, min_images: int = 1) -> None:
        self.root = root
        self.name = name or root.absolute().name
        self.classes = []
        self._files: list[str] = []
        counts: list[int] = []
        passed_over = 0
        try:
            folders, _, left_out = folder_entries(root, root)
            for identity in folders:
                there = folder_entries(root / identity, root)
                left_out |= {f"{identity}/{name}": reason for name, reason in there.left_out.items()}
                files = [file for file in there.files if file.lower().endswith(ENDINGS)]
                if len(files) < max(1, min_images):
                    passed_over += 1
                    continue
                self.classes.append(identity)
                self._files.extend(files)
                counts.append(len(files))
        except OSError as error:
            raise MissingDataError(f"{error.filename or root} cannot be read: {error.strerror}") from error
        warn_left_out(root, left_out)
        if not self.classes:
            raise MissingDataError(_nothing_in(root, len(folders), min_images))
        if passed_over:
            log.warning("%s: left out %s with too few pictures", root, counted(passed_over, "folder"))
        self.label_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def path(self, i: int) -> Path:
        """Where picture i is."""
        return self.root / self.classes[int(self.label_N[i])] / self._files[i]

    def encoded(self, i: int) -> bytes:
        path = self.path(i)
        try:
            return read_file(path)
        except OSError as error:
            raise DamagedDataError(f"{path} cannot be read: {error.strerror}") from error
        except DamagedDataError as error:
            raise DamagedDataError(f"{path}: {error}") from error

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        size_N = np.fromiter((_size(self.path(i)) for i in range(len(self))), np.int64, len(self))
        return [*super().contents(), self._files, size_N]

    def where(self, i: int) -> str:
        return str(self.path(i))

    def describe(self) -> str:
        counts = f"{counted(self.num_classes, 'identity')}, {counted(len(self), 'picture')}"
        return f"{self.name}: {counts}, from the folders in {self.root}"


@SOURCES.register("folder")
def open_folder(settings: DataSettings, min_images: int = 1) -> FaceSet:
    """The folder `settings.root`; option ``min_images`` leaves out identities with fewer pictures."""
    require(min_images >= 1, "data.options.min_images", min_images, "must be 1 or more")
    return FolderFaces(existing_root(settings), settings.name, min_images)


def _size(path: Path) -> int:
    """The bytes of a file; −1 where it went away, which whoever reads it will be told."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _nothing_in(root: Path, folders: int, min_images: int) -> str:
    """Why there is nothing to train on in `root`, and what to do."""
    wanted = f"{root} must hold a folder for each identity with its pictures ({', '.join(ENDINGS)})"
    if folders:
        least = f" {min_images} or more" if min_images > 1 else ""
        return f"{wanted}; it holds {folders} folders, none with{least} pictures"
    if any(name.lower().endswith(ENDINGS) for name in folder_entries(root, root).files):
        return f"{wanted}; it holds loose pictures, move each person's into a folder"
    if list(root.glob("*.rec")):
        return f"{wanted}; it holds a pack, use data=rec data.root={root}"
    return f"{wanted}; it holds no folders"
