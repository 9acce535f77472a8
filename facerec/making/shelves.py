"""Images by position with their identities, out of a folder or a pack, to draw pairs from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError
from facerec.images.decode import ENDINGS, decode
from facerec.images.face_maker import FaceFile, FaceMaker
from facerec.loading.named import Entries, folder_entries, warn_left_out
from facerec.making.from_folder import identity_folders, make_file
from facerec.packs.pack import Pack


class Shelf(Protocol):
    """N images of some identities.

    Attributes:
        label_N: int64, the identity of each.
    """

    label_N: np.ndarray

    def make(self, i: int) -> FaceFile:
        """Image i as a face, or why there is none; called by several threads at once."""

    def name(self, i: int) -> str:
        """Where image i comes from, for people."""

    def person(self, i: int) -> str:
        """Whose image i is; different for different identities."""


class FolderShelf:
    """The photographs ``folder/identity/photograph``; file names are looked up again when they are needed.

    Raises:
        MissingDataError: there are none.
    """

    def __init__(self, folder: Path, maker: FaceMaker) -> None:
        self._folder, self._maker = folder, maker
        self._identities, _, left_out = identity_folders(folder)
        many = []
        for identity in self._identities:
            there = self._entries(identity)
            many.append(len(_images(there)))
            left_out |= {f"{identity}/{name}": reason for name, reason in there.left_out.items()}
        warn_left_out(folder, left_out)
        if not any(many):
            raise MissingDataError(f"{folder}: its folders hold no images ({', '.join(ENDINGS)})")
        self._end_C = np.cumsum(many)
        self.label_N = np.repeat(np.arange(len(many), dtype=np.int64), many)
        self._files = lru_cache(maxsize=1024)(lambda identity: _images(self._entries(identity)))

    def name(self, i: int) -> str:
        end = int(self._end_C[self.label_N[i]])
        return (
            f"{self.person(i)}/{self._files(self.person(i))[i - end]}"  # counted from the end of its folder
        )

    def person(self, i: int) -> str:
        return self._identities[int(self.label_N[i])]

    def make(self, i: int) -> FaceFile:
        return make_file(self._maker, self._folder / self.name(i))

    def _entries(self, identity: str) -> Entries:
        try:
            return folder_entries(self._folder / identity, self._folder)
        except OSError as error:
            raise DamagedDataError(f"{self._folder / identity} cannot be read: {error.strerror}") from error


class PackShelf:
    """The images of a pack, as they are."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self.label_N = pack.label_N

    def name(self, i: int) -> str:
        return self._pack.where(i)

    def person(self, i: int) -> str:
        return str(int(self.label_N[i]))

    def make(self, i: int) -> FaceFile:
        try:
            encoded = bytes(self._pack.encoded(i))
            decode(encoded)
        except DamagedDataError as error:
            return FaceFile(None, str(error))
        return FaceFile(encoded)


def _images(there: Entries) -> list[str]:
    return [file for file in there.files if file.lower().endswith(ENDINGS)]
