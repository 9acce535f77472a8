"""Images that are files: what a folder holds, a folder per identity, the files of a list."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, counted
from facerec.images.decode import ENDINGS, read_file
from facerec.images.images import Images, LabelledImages

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class FileImages(Images):
    """Files below a folder, named by their paths relative to it; or those of a list, named as it does.

    With `contained` no link is followed out of the folder.
    """

    root: Path
    paths: Sequence[str]
    labels: Sequence[str] = ()
    source: Path | None = None
    _: KW_ONLY
    contained: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, i: int) -> bytes:
        path = self.root / self.paths[i]
        try:
            if self.contained:
                require_inside(path, self.root)
            return read_file(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path of a list
            reason = error.strerror if isinstance(error, OSError) else str(error)
            listed = f"; {self.source} names it" if self.source else ""
            raise MissingDataError(f"{path} cannot be read: {reason}{listed}") from error

    def where(self, i: int) -> str:
        return str(self.root / self.paths[i])

    def name(self, i: int) -> str:
        return self.paths[i]

    def label(self, i: int) -> str:
        return self.labels[i] if self.labels else ""

    def describe(self) -> str:
        named = len({label for label in self.labels if label})
        identities = f" of {counted(named, 'identity')}" if named else ""
        return f"{counted(len(self), 'image')}{identities} from {self.source or self.root}"


class FolderImages(LabelledImages):
    """The images ``root/identity/image``, identities and images in the order of their names.

    Args:
        root: the folder; its sub-folders are the identities. Names that begin with a dot, files that are no
            images by their ending, and folders without images are passed over; links that lead out of
            `root` and special files are too, with a warning.
        title: for logs; default: the folder's name.
        min_images: leave out identities with fewer images.

    Raises:
        MissingDataError: there are no images in sub-folders.
    """

    classes: list[str]

    def __init__(self, root: Path, title: str | None = None, min_images: int = 1) -> None:
        self.root = root
        self.title = title or root.absolute().name
        self.classes = []
        self._files: list[str] = []
        counts: list[int] = []
        passed_over = 0
        folders, _, left_out = identity_folders(root)
        for identity in folders:
            there = _readable(root / identity, root)
            left_out |= {f"{identity}/{name}": reason for name, reason in there.left_out.items()}
            if len(there.images) < max(1, min_images):
                passed_over += 1
                continue
            self.classes.append(identity)
            self._files += there.images
            counts.append(len(there.images))
        warn_left_out(root, left_out)
        if not self.classes:
            least = f" {min_images} or more" if min_images > 1 else ""
            raise MissingDataError(
                f"{_wanted(root)}; it holds {counted(len(folders), 'folder')}, none with{least} images"
            )
        if passed_over:
            _log.warning("%s: left out %s with too few images", root, counted(passed_over, "folder"))
        self.label_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def name(self, i: int) -> str:
        return f"{self.label(i)}/{self._files[i]}"

    def encoded(self, i: int) -> bytes:
        path = self.where(i)
        try:
            return read_file(Path(path))
        except OSError as error:
            raise DamagedDataError(f"{path} cannot be read: {error.strerror}") from error
        except DamagedDataError as error:
            raise DamagedDataError(f"{path}: {error}") from error

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        size_N = np.fromiter((_size(self.root / self.name(i)) for i in range(len(self))), np.int64, len(self))
        return [*super().contents(), self._files, size_N]

    def where(self, i: int) -> str:
        return str(self.root / self.name(i))

    def describe(self) -> str:
        counts = f"{counted(self.num_classes, 'identity')}, {counted(len(self), 'image')}"
        return f"{self.title}: {counts}, from the folders in {self.root}"


class Entries(NamedTuple):
    """The entries right in a folder, sorted; names that begin with a dot do not count.

    Attributes:
        folders, files: names of sub-folders and of regular files, or of links to them inside of the root.
        left_out: why any other entry must not be opened.
    """

    folders: list[str]
    files: list[str]
    left_out: dict[str, str]

    @property
    def images(self) -> list[str]:
        """The files that are images by their ending."""
        return [file for file in self.files if file.lower().endswith(ENDINGS)]


def folder_entries(folder: Path, root: Path) -> Entries:
    """List `folder`, which lies in `root`, without what would block a reader or leads out of `root`.

    Raises:
        OSError: it cannot be read.
    """
    found = Entries([], [], {})
    inside = Path(os.path.realpath(root))
    require_inside(folder, root)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            target = Path(os.path.realpath(entry.path)) if entry.is_symlink() else None
            if target and not target.exists():
                found.left_out[entry.name] = "a link to nothing"
            elif target and not target.is_relative_to(inside):
                found.left_out[entry.name] = _out_of(root)
            elif entry.is_dir():
                found.folders.append(entry.name)
            elif entry.is_file():
                found.files.append(entry.name)
            else:
                found.left_out[entry.name] = "no regular file (a pipe, a socket or a device)"
    return found


def require_inside(path: Path, root: Path) -> None:
    """Raise OSError where a link on the way to `path` leads out of the folder `root`."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise OSError(errno.EINVAL, _out_of(root), str(path))


def _out_of(root: Path) -> str:
    return f"a link that leads out of {root}; put the files themselves there"


def images_below(root: Path) -> list[str]:
    """Relative paths of all images below a folder, folder by folder; what is left out is said in a line.

    Raises:
        MissingDataError: a folder cannot be read, or there are no images.
    """
    paths: list[str] = []
    left_out: dict[str, str] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        there = _readable(root / folder, root)
        paths += [folder + file for file in there.images]
        left_out |= {folder + name: reason for name, reason in there.left_out.items()}
        links = [name for name in there.folders if (root / folder / name).is_symlink()]  # they may go round
        left_out |= {f"{folder}{name}": "a link to another folder in it" for name in links}
        waiting += [f"{folder}{name}/" for name in reversed(there.folders) if name not in links]
    warn_left_out(root, left_out)
    if not paths:
        raise MissingDataError(f"{root}: holds no images ({', '.join(ENDINGS)}) and no pack")
    return paths


def _readable(folder: Path, root: Path) -> Entries:
    try:
        return folder_entries(folder, root)
    except OSError as error:
        raise MissingDataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _size(path: Path) -> int:
    """The bytes of a file; −1 where it went away, which whoever reads it will be told."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def identity_folders(root: Path) -> Entries:
    """The entries of a folder that holds a folder per identity.

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
    if there.images:
        reason = "it holds loose images, move each identity's into a folder"
    raise MissingDataError(f"{_wanted(root)}; {reason}")


def _wanted(root: Path) -> str:
    return f"{root} must hold a folder for each identity with its images ({', '.join(ENDINGS)})"


def warn_left_out(root: Path, left_out: Mapping[str, str]) -> None:
    """Say how many entries of a folder were left out, and one of them."""
    for name, reason in list(left_out.items())[:1]:
        _log.warning("%s: left out %s, such as %s: %s", root, counted(len(left_out), "entry"), name, reason)
