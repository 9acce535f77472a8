"""Images that lie in files: read one by one when they are embedded, aligned where landmarks are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, MissingDataError
from facerec.images.align import align
from facerec.images.decode import decode_whole, read_file


class FileImages(Sequence[Any]):
    """A sequence of image files: `images[i]` reads file i.

    Args:
        paths: the files.
        landmarks_P52: five points of each image (x, y in pixels), to align it by; None: aligned already,
            the files' bytes are given as they are.
        size: height and width of aligned images.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        landmarks_P52: npt.NDArray[np.floating] | None = None,
        size: int = 112,
    ) -> None:
        self.paths = paths
        self.landmarks_P52 = landmarks_P52
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> FileImages: ...
    def __getitem__(self, index: int | slice) -> Any:
        """The encoded image, or the aligned pixels; a slice reads nothing.

        Raises:
            MissingDataError: the file cannot be read.
            DamagedDataError: it is to be aligned and is not an image.
        """
        if isinstance(index, slice):
            landmarks = None if self.landmarks_P52 is None else self.landmarks_P52[index]
            return FileImages(self.paths[index], landmarks, self.size)
        path = Path(self.paths[index])
        try:
            encoded = read_file(path)
            if self.landmarks_P52 is None:
                return encoded
            return align(decode_whole(encoded), self.landmarks_P52[index], self.size)
        except OSError as error:
            raise MissingDataError(f"{path}: {error.strerror}, but a list names this image") from error
        except DamagedDataError as error:
            raise DamagedDataError(f"{path}: {error}") from error

    def where(self, index: int) -> str:
        """How errors name image `index`."""
        return str(self.paths[index])
