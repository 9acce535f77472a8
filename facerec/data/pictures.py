"""Pictures with their names and labels from wherever they lie: a folder, a pack, a verification set, a list.

Shape suffixes: P pictures, N rows that are wanted of them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt

from facerec.data.decode import ENDINGS, read_file
from facerec.data.index_text import text_lines
from facerec.data.packs import Pack, open_pack
from facerec.data.verification import VerificationSet, load_verification
from facerec.errors import MissingDataError, UserError


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
        return _Files(source, *_below(source))
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
        people = f" of {named:,} identities" if named else ""
        return f"{len(self):,} pictures{people} from {self._source}"


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


def _below(root: Path) -> tuple[list[str], list[str]]:
    """Paths of all pictures below a folder, sorted, and the folders they lie in; hidden ones do not count."""
    paths, labels = [], []

    def refused(error: OSError) -> None:
        raise MissingDataError(f"{error.filename} cannot be read: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=refused):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = Path(folder).relative_to(root).as_posix()
        for file in sorted(files):
            if file.lower().endswith(ENDINGS) and not file.startswith("."):
                paths.append(file if place == "." else f"{place}/{file}")
                labels.append("" if place == "." else place)
    if not paths:
        raise MissingDataError(f"{root}: holds no pictures ({', '.join(ENDINGS)}) and no pack")
    return paths, labels


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
