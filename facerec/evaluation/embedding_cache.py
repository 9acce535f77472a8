"""Embeddings kept between evaluations: the same model file, images and preprocessing give them back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facerec import distributed
from facerec.errors import ConfigError, FacerecError, StorageError, counted
from facerec.files import replacing
from facerec.images.images import Images
from facerec.models.model import Model
from facerec.models.networks import ForeignNetwork

logger = logging.getLogger("facerec.evaluation")

# To be raised where the way from encoded images to embeddings changes: decoding, resizing, mirroring.
_VERSION: Final = 2

Views = npt.NDArray[np.float32]  # (V, P, D): 1 or 2 views of P images
Positions = npt.NDArray[np.integer]


class EmbeddingCache:
    """A folder of embeddings, a file for each set of images that one model embedded.

    A file is an ``.npz`` without pickle, whose parts carry checksums and which holds the digest of what it
    was made from; one that is damaged or was made from something else counts as none. That finds mistakes;
    whoever may write into the folder can put any embeddings there. Files are not removed: empty the folder
    when it grows too large.

    Args:
        folder: it is made where it is missing.
        model: which must have come from a file, and must not be changed afterwards.
        level: of the log lines that say what was found.

    Raises:
        ConfigError: `folder` is a file, or an empty text.
    """

    def __init__(self, folder: str | Path, model: Model, level: int = logging.INFO) -> None:
        self.folder, self._level = Path(folder), level
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
            "weights": model.weights,
        }
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
        for file in _files(model):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        self._model = digest.hexdigest()
        self._made_from: dict[Path, str] = {}

    def look_up(
        self, images: Images, position_P: Positions, name: str, *, flip: bool, precision: str
    ) -> tuple[Path | None, Views | None]:
        """Return the cache file of `images` at `position_P` (on rank 0), and the embeddings it holds already.

        All the images are read, for their content decides.

        Args:
            images, position_P, flip, precision: as `embed_images` takes them.
            name: of the set, for readers of the folder.
        """
        path, views_VPD = None, None
        if distributed.rank() == 0:
            # An image that cannot be read stops whichever rank embeds it, with its place in the message.
            with contextlib.suppress(FacerecError):
                path = self._path(images, position_P, name, {"flip": flip, "precision": precision})
                views_VPD = self._load(path, (1 + flip, len(position_P)))
        return path, distributed.broadcast_object(views_VPD)

    def _path(self, images: Images, position_P: Positions, name: str, how: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps([self._model, how], sort_keys=True).encode())
        for i in position_P.tolist():
            content = memoryview(images.encoded(i)).cast("B")
            digest.update(f"{content.shape}".encode())
            digest.update(content)
        word = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)[:40]
        path = self.folder / f"{word}-{digest.hexdigest()[:32]}.npz"
        self._made_from[path] = digest.hexdigest()
        return path

    def _load(self, path: Path, size: tuple[int, int]) -> Views | None:
        """The embeddings kept at `path`, of `size` (V, P); None if there are none, or (a warning) damaged."""
        try:
            with zipfile.ZipFile(path) as archive:
                made_from, embedding_VPD = (_array(archive, name) for name in ("made_from", "embeddings"))
        except FileNotFoundError:
            logger.log(self._level, "embedding cache: miss, %s is not there yet", path)
            return None
        # What a zip or NPY reader meets in a damaged file is whatever the broken field happens to cause.
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
            logger.warning("embedding cache: %s is damaged (%s); embedding again", path, error)
            return None
        wrong = None
        if made_from.shape != () or str(made_from) != self._made_from[path]:
            wrong = "was made from something else"
        elif embedding_VPD.dtype != np.float32 or embedding_VPD.ndim != 3 or embedding_VPD.shape[:2] != size:
            wrong = f"holds {embedding_VPD.dtype} of shape {embedding_VPD.shape}"
        if wrong:
            logger.warning("embedding cache: %s %s; embedding again", path, wrong)
            return None
        logger.log(self._level, "embedding cache: hit, %s from %s", counted(size[1], "image"), path)
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
