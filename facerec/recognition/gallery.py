"""A gallery: unit embeddings with their identities, searched exactly.

Shape suffixes: G gallery entries, P probes, D embedding size, K matches.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import DamagedDataError, MissingDataError, UserError, counted, require
from facerec.evaluation.statistics.search import BLOCK, TopK, unit
from facerec.files import replacing

_ROUNDING: Final = 1e-3  # of a length


class Match(NamedTuple):
    """An entry of the gallery, and its cosine with the probe."""

    identity: str
    cosine: float


class Gallery:
    """Embeddings of known identities, any number of each; threads may share one.

    A million embeddings of 512 numbers take 2 GB. A search multiplies the probes with all of them, block by
    block: what it finds are the nearest ones, not nearly.
    """

    def __init__(self) -> None:
        self._identities: list[str] = []
        self._rows = torch.empty(0, 0)  # more than are in use, to grow into
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._identities)

    def add(self, identities: str | Sequence[str], embedding_GD: npt.NDArray[np.floating]) -> None:
        """Add entries, as of `FaceModel.embed`.

        Args:
            identities: a name for each row, or one for all of them.
            embedding_GD: of any length; (D,) is one row.

        Raises:
            UserError: the shapes do not fit each other, or what is there already.
            NonFiniteError: naming a row that is not finite.
        """
        row_GD = _rows(embedding_GD, "embedding")
        names = [identities] * len(row_GD) if isinstance(identities, str) else list(identities)
        for name in names:
            if not isinstance(name, str) or name.endswith("\0"):  # which NumPy's files do not keep
                raise UserError(f"identity {name!r}: is no name; give text that does not end in NUL")
        if len(names) != len(row_GD):
            what = f"{counted(len(names), 'identity')} and {counted(len(row_GD), 'embedding')}"
            raise UserError(f"{what}: give one name for each")
        with self._lock:
            count = len(self._identities)
            self._require_size(row_GD)
            if count + len(row_GD) > len(self._rows):  # a search that is under way keeps the former memory
                larger = torch.empty(max(2 * count, count + len(row_GD)), row_GD.shape[1])
                larger[:count] = self._rows[:count] if count else larger[:0]
                self._rows = larger
            self._rows[count : count + len(row_GD)] = row_GD
            self._identities += names

    def search(self, embedding_PD: npt.NDArray[np.floating], k: int = 5) -> list[list[Match]]:
        """The `k` entries nearest to each probe, best first; fewer where there are fewer.

        Args:
            embedding_PD: of any length; (D,) is one probe.

        Raises:
            UserError: the embeddings are of another size than the gallery's.
            NonFiniteError: naming a row that is not finite.
        """
        require(isinstance(k, int | np.integer) and k >= 1, "k", k, "must be an integer, 1 or more")
        probe_PD = _rows(embedding_PD, "probe")
        with self._lock:
            count = len(self._identities)
            self._require_size(probe_PD)
            row_GD = self._rows[:count]
        top = TopK(len(probe_PD), min(int(k), count))
        for first in range(0, count, BLOCK):
            top.add(first, probe_PD @ row_GD[first : first + BLOCK].T)
        return [
            [
                Match(self._identities[i], min(1.0, max(-1.0, score)))
                for i, score in zip(index, scores, strict=True)
                if i >= 0
            ]
            for index, scores in zip(top.index_PK.tolist(), top.score_PK.tolist(), strict=True)
        ]

    def save(self, path: str | Path) -> None:
        """Write it to one file, NumPy's `.npz` without pickled objects.

        Raises:
            StorageError: it could not be written; a file that was there before still is.
        """
        with self._lock:
            identities, row_GD = list(self._identities), self._rows[: len(self._identities)].numpy()
        with replacing(Path(path)) as file:
            np.savez(file, identities=np.array(identities, dtype=np.str_), embeddings=row_GD)

    @classmethod
    def load(cls, path: str | Path) -> Gallery:
        """Read what `save` wrote; nothing in the file is run.

        Raises:
            MissingDataError, DamagedDataError: it is not there, or no gallery.
        """
        gallery, where = cls(), f"{path}: is no gallery, or a damaged one"
        try:
            if not zipfile.is_zipfile(path) and Path(path).stat():
                raise ValueError("it is no .npz file")
            with np.load(path, allow_pickle=False) as content:
                names, row_GD = content["identities"], content["embeddings"]
        except FileNotFoundError:
            raise MissingDataError(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DamagedDataError(f"{where} ({error})") from error
        shapes = names.dtype.kind == "U" and row_GD.dtype == np.float32 and row_GD.ndim == 2
        if not shapes or names.shape != row_GD.shape[:1]:
            held = f"{names.dtype} of shape {names.shape}, {row_GD.dtype} of shape {row_GD.shape}"
            raise DamagedDataError(f"{where} (identities and embeddings are {held})")
        row_GD = torch.from_numpy(row_GD)
        for first in range(0, len(row_GD), BLOCK):
            norm_B = torch.linalg.vector_norm(row_GD[first : first + BLOCK], dim=1)
            wrong_B = ~((norm_B - 1).abs() < _ROUNDING) & (norm_B != 0)
            if wrong_B.any():
                raise DamagedDataError(
                    f"{where} (embedding {first + int(wrong_B.nonzero()[0])} has not length 1)"
                )
        gallery._identities, gallery._rows = names.tolist(), row_GD
        return gallery

    def _require_size(self, row_XD: torch.Tensor) -> None:
        if len(self._identities) and row_XD.shape[1] != self._rows.shape[1]:
            here = f"those of the gallery {self._rows.shape[1]}: is it another model?"
            raise UserError(f"embeddings have {row_XD.shape[1]} numbers, {here}")


def _rows(embeddings: Any, what: str) -> torch.Tensor:
    """Unit rows of an array, a tensor or a list of numbers; one row where it has one axis."""
    array = (
        embeddings.detach().cpu().numpy() if isinstance(embeddings, torch.Tensor) else np.asarray(embeddings)
    )
    if array.dtype.kind not in "fiu":
        raise UserError(f"{what}s are {array.dtype}; numbers of shape (number, embedding size) are expected")
    return unit(array[None] if array.ndim == 1 else array, what)
