"""data.kind=folder: aligned images in a folder for each identity."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, counted, require
from facerec.images.decode import ENDINGS, read_file
from facerec.images.images import LabelledImages
from facerec.loading.named import Entries, folder_entries, warn_left_out
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES, existing_root

log = logging.getLogger(__name__)


class FolderImages(LabelledImages):
    """The images ``root/identity/image``, identities and images in the order of their names.

    Args:
        root: the folder; its sub-folders are the identities. Names that begin with a dot, files that are no
            images by their ending, and folders without images are passed over; links that lead out of
            `root` and special files are too, with a warning.
        name: for logs; default: the folder's name.
        min_images: leave out identities with fewer images.

    Raises:
        MissingDataError: there are no images in sub-folders.
    """

    classes: list[str]

    def __init__(self, root: Path, name: str | None = None, min_images: int = 1) -> None:
        self.root = root
        self.title = name or root.absolute().name
        self.classes = []
        self._files: list[str] = []
        counts: list[int] = []
        passed_over = 0
        folders, _, left_out = identity_folders(root)
        try:
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
            least = f" {min_images} or more" if min_images > 1 else ""
            raise MissingDataError(
                f"{_wanted(root)}; it holds {counted(len(folders), 'folder')}, none with{least} images"
            )
        if passed_over:
            log.warning("%s: left out %s with too few images", root, counted(passed_over, "folder"))
        self.label_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def path(self, i: int) -> Path:
        """Where image i is."""
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
        counts = f"{counted(self.num_classes, 'identity')}, {counted(len(self), 'image')}"
        return f"{self.title}: {counts}, from the folders in {self.root}"


@SOURCES.register("folder")
def open_folder(settings: DataSettings, min_images: int = 1) -> LabelledImages:
    """The folder `settings.root`; option ``min_images`` leaves out identities with fewer images."""
    require(min_images >= 1, "data.options.min_images", min_images, "must be 1 or more")
    return FolderImages(existing_root(settings), settings.name, min_images)


def _size(path: Path) -> int:
    """The bytes of a file; −1 where it went away, which whoever reads it will be told."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def identity_folders(root: Path) -> Entries:
    """The entries of a folder of identities' folders.

    Raises:
        MissingDataError: it holds no folders; the message says what is there instead.
    """
    try:
        there = folder_entries(root, root)
    except OSError as error:
        raise MissingDataError(f"{_wanted(root)}; it cannot be read: {error.strerror}") from error
    if there.folders:
        return there
    reason = "it holds no folders"
    for name, left_out in list(there.left_out.items())[:1]:
        reason += f", and {name} is {left_out}"
    if list(root.glob("*.rec")):
        reason = f"it holds a pack, use data=rec data.root={root}"
    if any(name.lower().endswith(ENDINGS) for name in there.files):
        reason = "it holds loose images, move each identity's into a folder"
    raise MissingDataError(f"{_wanted(root)}; {reason}")


def _wanted(root: Path) -> str:
    return f"{root} must hold a folder for each identity with its images ({', '.join(ENDINGS)})"
