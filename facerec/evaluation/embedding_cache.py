"""Embeddings kept between evaluations: the same model file, pictures and preprocessing give them back."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facerec.errors import ConfigError, StorageError
from facerec.evaluation.model import Model
from facerec.evaluation.networks import ForeignNetwork
from facerec.files import replacing

logger = logging.getLogger("facerec.evaluation")

# To be raised where the way from encoded pictures to embeddings changes: decoding, resizing, mirroring.
_VERSION: Final = 2

Views = npt.NDArray[np.float32]  # (1 or 2 views, P pictures, D)


class EmbeddingCache:
    """A folder of embeddings, a file for each set of pictures that one model embedded.

    A file is an ``.npz`` without pickle, whose parts carry checksums; one that is damaged counts as none, and
    so does one that was made from something else than its name says: it holds the digest of what it was made
    from. That finds mistakes; whoever may write into the folder can put any embeddings there.
    Files are not removed: empty the folder when it grows too large.

    Args:
        folder: it is made where it is missing.
        model: which must have come from a file, and must not be changed afterwards.

    Raises:
        ConfigError: `folder` is a file, or an empty text.
    """

    def __init__(self, folder: str | Path, model: Model) -> None:
        self.folder = Path(folder)
        if not str(folder):  # which would be the folder that one happens to be in
            raise ConfigError("eval.cache", "", "is empty; name a folder, or give null")
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError("eval.cache", str(folder), "is a file; name a folder")
        if model.path is None:
            raise ValueError("a model that came from no file has no embeddings to keep")
        said = {
            "version": _VERSION,
            "input": model.input.to_dict(),
            "backbone": model.config.get("backbone"),
            "device": model.device.type,
        }
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
        for file in _files(model):
            digest.update(_file_digest(file))
        self._model = digest.hexdigest()
        self._made_from: dict[Path, str] = {}

    def path(self, pictures: Sequence[Any], name: str, **how: Any) -> Path:
        """Where the embeddings of `pictures` are kept; all of them are read, for their content decides.

        Args:
            pictures: as `embed_pictures` takes them.
            name: of the set, for people who look into the folder.
            how: what else the embeddings depend on.
        """
        digest = hashlib.sha256(json.dumps([self._model, how], sort_keys=True).encode())
        for i in range(len(pictures)):
            picture: Any = pictures[i]
            content = memoryview(
                np.ascontiguousarray(picture).data if isinstance(picture, np.ndarray) else picture
            )
            digest.update(f"{content.shape}".encode())
            digest.update(content.cast("B"))
        word = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)[:40]
        path = self.folder / f"{word}-{digest.hexdigest()[:32]}.npz"
        self._made_from[path] = digest.hexdigest()
        return path

    def load(self, path: Path, count: int, views: int) -> Views | None:
        """The embeddings kept at `path`, or None where there are none or the file is damaged (a warning).

        Args:
            path: one that `path` gave.
            count: how many images there are.
            views: 1, or 2 with flip.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                made_from, embedding_VPD = (_array(archive, name) for name in ("made_from", "embeddings"))
        except FileNotFoundError:
            logger.info("embedding cache: miss, %s is not there yet", path)
            return None
        # What a zip or NPY reader meets in a damaged file is whatever the broken field happens to cause.
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
            logger.warning("embedding cache: %s is damaged (%s); embedding again", path, error)
            return None
        if made_from.shape != () or str(made_from) != self._made_from[path]:
            logger.warning("embedding cache: %s was made from something else; embedding again", path)
            return None
        shape = embedding_VPD.shape
        if embedding_VPD.dtype != np.float32 or len(shape) != 3 or shape[:2] != (views, count):
            logger.warning(
                "embedding cache: %s holds %s of shape %s; embedding again", path, embedding_VPD.dtype, shape
            )
            return None
        logger.info("embedding cache: hit, %d pictures from %s", count, path)
        return embedding_VPD

    def store(self, path: Path, embedding_VPD: Views) -> None:
        """Keep embeddings at `path`; where that fails there is a warning, for the numbers are not lost."""
        try:
            with replacing(path) as file:
                np.savez(file, made_from=np.array(self._made_from[path]), embeddings=embedding_VPD)
        except StorageError as error:
            logger.warning("embedding cache: %s", error)


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """A part of the file. It must not be compressed: so nothing takes more memory than the file has bytes."""
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    content = bytearray(archive.read(f"{name}.npy"))
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def _files(model: Model) -> list[Path]:
    """A model's files: itself with those it refers to, or those of a checkpoint folder."""
    assert model.path is not None
    if model.path.is_dir():
        return sorted(one for one in model.path.rglob("*") if one.is_file())
    return model.backbone.files if isinstance(model.backbone, ForeignNetwork) else [model.path]


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
