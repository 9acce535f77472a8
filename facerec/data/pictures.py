"""Pictures with their names and labels from wherever they lie: a folder, a pack, a verification set, a list.

Shape suffixes: P pictures, N rows that are wanted of them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.data.decode import ENDINGS, read_file, read_header
from facerec.data.index_text import text_lines
from facerec.data.packs import Pack, open_pack
from facerec.data.verification import VerificationSet, load_verification
from facerec.errors import DamagedDataError, MissingDataError, UserError, counted

_log = logging.getLogger(__name__)
_SQUARE = 1.25  # longer side by shorter one; ORL's 112×92 are cropped faces


class NamedPictures(ABC):
    """P encoded pictures, and N rows with a name and a label each; row n shows picture ``row_N[n]``.

    Pictures may be read by several threads at once.

    Attributes:
        row_N: int64; a picture may stand in several rows.
        together: how many neighbouring rows are of no use without each other: 2 where rows are pairs.
    """

    row_N: npt.NDArray[np.int64]
    together: int = 1

    @abstractmethod
    def __len__(self) -> int:
        """P, the number of distinct pictures."""

    @abstractmethod
    def encoded(self, picture: int) -> bytes | memoryview:
        """The bytes of a picture's file.

        Raises:
            DamagedDataError: its record is damaged.
            MissingDataError: its file cannot be read.
        """

    @abstractmethod
    def where(self, picture: int) -> str:
        """How errors name a picture."""

    @abstractmethod
    def name(self, row: int) -> str:
        """The name of a row, unique among those of most sources."""

    @abstractmethod
    def label(self, row: int) -> str:
        """Who it is, as far as the source says; empty where it does not."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""


def open_pictures(
    source: str | Path,
    *,
    list_root: str | Path | None = None,
    damaged: Literal["raise", "skip"] = "raise",
) -> NamedPictures:
    """Whatever pictures `source` is.

    Args:
        source: a folder with a pack (``train.rec``, or one other `.rec`), or the `.rec`; any other folder,
            for all pictures below it; a verification set (`.bin`); a single picture; a text file with a path
            a line, behind which a tab and a label may stand.
        list_root: where relative paths of a list start; None: in the folder of the list.
        damaged: what to do about damaged record headers of a pack, see `open_pack`.

    Raises:
        MissingDataError: it is not there, or holds no pictures.
        DamagedDataError: it is not what its ending says.
        UserError: it is none of these.
    """
    source = Path(source)
    if source.is_dir():
        if any(source.glob("*.rec")):
            return _PackPictures(open_pack(source, damaged=damaged))
        paths = images_below(source)
        return _Files(source, paths, [path.rpartition("/")[0] for path in paths])
    if not source.is_file():
        raise MissingDataError(
            f"{source}: no such file or folder; expected pictures, a pack, a .bin or a list of paths"
        )
    if source.suffix == ".rec":
        return _PackPictures(open_pack(source, damaged=damaged))
    if source.suffix == ".bin":
        return _PairPictures(load_verification(source))
    if source.suffix.lower() in ENDINGS:
        return _Files(source.parent, [source.name], [""])
    return _Files(Path(list_root) if list_root is not None else source.parent, *_listed(source), source)


class _Files(NamedPictures):
    """Files below a folder, named by their paths relative to it; or those of a list, named as it does."""

    def __init__(
        self, root: Path, paths: Sequence[str], labels: Sequence[str], source: Path | None = None
    ) -> None:
        self._root, self._paths, self._labels, self._source = root, paths, labels, source or root
        self.row_N = np.arange(len(paths), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def encoded(self, picture: int) -> bytes:
        path = self._root / self._paths[picture]
        try:
            return read_file(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path of a list
            reason = error.strerror if isinstance(error, OSError) else str(error)
            listed = f"; {self._source} names it" if self._source != self._root else ""
            raise MissingDataError(f"{path} cannot be read: {reason}{listed}") from error

    def where(self, picture: int) -> str:
        return str(self._root / self._paths[picture])

    def name(self, row: int) -> str:
        return self._paths[row]

    def label(self, row: int) -> str:
        return self._labels[row]

    def describe(self) -> str:
        named = len({label for label in self._labels if label})
        people = f" of {counted(named, 'identity')}" if named else ""
        return f"{counted(len(self), 'picture')}{people} from {self._source}"


class _PackPictures(NamedPictures):
    """The pictures of a pack, under the names of its `.lst` where there is one."""

    def __init__(self, pack: Pack) -> None:
        from facerec.data.making.listing import Names

        self._pack, self._names = pack, Names(pack)
        self.row_N = np.arange(len(pack), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._pack)

    def encoded(self, picture: int) -> memoryview:
        return self._pack.encoded(picture)

    def where(self, picture: int) -> str:
        return self._pack.where(picture)

    def name(self, row: int) -> str:
        return self._names.picture(row)

    def label(self, row: int) -> str:
        return self._names.identity(row)

    def describe(self) -> str:
        return self._pack.describe()


class _PairPictures(NamedPictures):
    """The rows of a verification set: rows 2i and 2i + 1 are pair i, labelled 1 (genuine) or 0 (impostor)."""

    together = 2

    def __init__(self, verification_set: VerificationSet) -> None:
        self._set = verification_set
        self.row_N = verification_set.index_2N

    def __len__(self) -> int:
        return len(self._set.pictures)

    def encoded(self, picture: int) -> bytes:
        return self._set.pictures[picture]

    def where(self, picture: int) -> str:
        return self._set.where(picture)

    def name(self, row: int) -> str:
        return f"{self._set.name}/{row // 2}/{row % 2}"

    def label(self, row: int) -> str:
        return str(int(self._set.issame_N[row // 2]))

    def describe(self) -> str:
        return self._set.describe()


class Entries(NamedTuple):
    """What lies right in a folder, sorted; names that begin with a dot do not count.

    Attributes:
        folders, files: names of sub-folders and of regular files, or of links to them inside of the root.
        left_out: why any other entry must not be opened.
    """

    folders: list[str]
    files: list[str]
    left_out: dict[str, str]


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
        place = waiting.pop()
        try:
            there = folder_entries(root / place, root)
        except OSError as error:
            raise MissingDataError(f"{error.filename} cannot be read: {error.strerror}") from error
        paths += [place + file for file in there.files if file.lower().endswith(ENDINGS)]
        left_out |= {place + name: reason for name, reason in there.left_out.items()}
        links = [name for name in there.folders if (root / place / name).is_symlink()]  # they may go round
        left_out |= {f"{place}{name}": "a link to another folder in it" for name in links}
        waiting += [f"{place}{name}/" for name in reversed(there.folders) if name not in links]
    warn_left_out(root, left_out)
    if not paths:
        raise MissingDataError(f"{root}: holds no pictures ({', '.join(ENDINGS)}) and no pack")
    return paths


def warn_of_unaligned(place: Path, encoded: Iterable[bytes | memoryview]) -> None:
    """Warn where the headers of some images say that they are photographs rather than aligned faces.

    Those are nearly square, and of one size.
    """
    sizes = []
    for one in encoded:
        with contextlib.suppress(DamagedDataError):  # whoever decodes it will be told
            header = read_header(one)
            sizes.append((header.width, header.height))
    oblong = sum(max(size) > _SQUARE * min(size) for size in sizes)
    if 2 * oblong > len(sizes) or 2 * len(set(sizes)) > max(len(sizes), 4):
        shown = ", ".join(f"{width}×{height}" for width, height in list(dict.fromkeys(sizes))[:3])
        folder = place if place.is_dir() else "FOLDER"
        before = "" if place.is_dir() else f"`facerec-data unpack {place} FOLDER`, then "
        _log.warning(
            "%s: images of %s pixels are hardly aligned faces, which models expect; align them: "
            "%s`facerec-data pack --align %s OUT`",
            *(place, shown, before, folder),
        )


def warn_left_out(root: Path, left_out: Mapping[str, str]) -> None:
    """Say how many entries of a folder were left out, and one of them."""
    for name, reason in list(left_out.items())[:1]:
        _log.warning("%s: left out %s, such as %s: %s", root, counted(len(left_out), "entry"), name, reason)


def _listed(path: Path) -> tuple[list[str], list[str]]:
    """Paths and labels of a list; without a label the folder's name of the path counts."""
    lines = text_lines(path, "surrogateescape")
    if any("\0" in line for line in lines[:100]):
        raise UserError(
            f"{path}: is neither a picture, nor a pack (.rec), a verification set (.bin) or a list of paths"
        )
    paths, labels = [], []
    for line in lines:
        name, _, label = line.partition("\t")
        if name.strip():
            paths.append(name.strip())
            labels.append(label.strip() or PurePosixPath(name.strip()).parent.name)
    if not paths:
        raise MissingDataError(f"{path}: names no pictures; a list has a path a line")
    return paths, labels
