"""Pictures that lie in files: read one by one when they are embedded, aligned where landmarks are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from facerec.data.align import align
from facerec.data.decode import decode_whole, read_file
from facerec.data.pictures import require_inside
from facerec.errors import DamagedDataError, MissingDataError


class FilePictures(Sequence[Any]):
    """A sequence of picture files: `pictures[i]` reads file i.

    Args:
        paths: the files.
        landmarks_P52: five points of each picture (x, y in pixels), to align it by; None: aligned already,
            the files' bytes are given as they are.
        size: height and width of aligned pictures.
        root: a folder that no link may lead out of; None: links may lead anywhere.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        landmarks_P52: npt.NDArray[np.floating] | None = None,
        size: int = 112,
        root: Path | None = None,
    ) -> None:
        self.paths = paths
        self.landmarks_P52 = landmarks_P52
        self.size = size
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> FilePictures: ...
    def __getitem__(self, index: int | slice) -> Any:
        """The encoded picture, or the aligned pixels; a slice reads nothing.

        Raises:
            MissingDataError: the file cannot be read, or a link leads out of `root`.
            DamagedDataError: it is to be aligned and is not a picture.
        """
        if isinstance(index, slice):
            landmarks = None if self.landmarks_P52 is None else self.landmarks_P52[index]
            return FilePictures(self.paths[index], landmarks, self.size, self.root)
        path = Path(self.paths[index])
        try:
            if self.root is not None:
                require_inside(path, self.root)
            encoded = read_file(path)
            if self.landmarks_P52 is None:
                return encoded
            return align(decode_whole(encoded), self.landmarks_P52[index], self.size)
        except OSError as error:
            raise MissingDataError(f"{path}: {error.strerror} (a list names this image)") from error
        except DamagedDataError as error:
            raise DamagedDataError(f"{path}: {error}") from error

    def where(self, index: int) -> str:
        """How errors name picture `index`."""
        return str(self.paths[index])
