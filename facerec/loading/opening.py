"""Open images from wherever they lie: a folder, a pack, a verification set, a list.

Shape suffixes: N images or rows of pairs, P distinct images.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, UserError
from facerec.images.decode import ENDINGS, Encoded, read_header
from facerec.images.images import Images, LabelledImages
from facerec.loading.folders import FileImages, FolderImages, images_below
from facerec.packs.pack import Pack, open_pack
from facerec.packs.text import text_lines
from facerec.packs.verification import VerificationSet, load_verification

_log = logging.getLogger(__name__)
_SQUARE = 1.25  # longer side by shorter one; ORL's 112×92 are cropped faces


def open_images(
    source: str | Path, *, list_root: str | Path | None = None, damaged: Literal["raise", "skip"] = "raise"
) -> Images:
    """Open the images of `source`, whatever it is.

    Args:
        source: a folder with a pack (``train.rec``, or one other `.rec`), or the `.rec`; any other folder,
            for all images below it; a verification set (`.bin`); a single image; a text file with a path
            per line, behind which a tab and a label may stand.
        list_root: where relative paths of a list start; None: in the folder of the list.
        damaged: what to do about damaged record headers of a pack, see `open_pack`.

    Raises:
        MissingDataError: it is not there, or holds no images.
        DamagedDataError: it is not what its ending says.
        UserError: it is none of these.
    """
    source = Path(source)
    if source.is_dir():
        if any(source.glob("*.rec")):
            return _pack(source, damaged)
        paths = images_below(source)
        return FileImages(source, paths, [path.rpartition("/")[0] for path in paths])
    if not source.is_file():
        raise MissingDataError(
            f"{source}: no such file or folder; expected images, a pack, a .bin or a list of paths"
        )
    if source.suffix == ".rec":
        return _pack(source, damaged)
    if source.suffix == ".bin":
        return PairImages(load_verification(source))
    if source.suffix.lower() in ENDINGS:
        return FileImages(source.parent, [source.name])
    return FileImages(Path(list_root) if list_root is not None else source.parent, *_listed(source), source)


def open_identities(source: Path) -> LabelledImages:
    """Open images of identities: a pack without its damaged records, or a folder with a folder per identity.

    Raises:
        MissingDataError: it is neither; a verification set is not, either.
        DamagedDataError: the pack cannot be read.
    """
    if source.is_dir() and not any(source.glob("*.rec")):
        return FolderImages(source)
    return _pack(source, "skip")


def _pack(source: Path, damaged: Literal["raise", "skip"]) -> Pack:
    pack = open_pack(source, damaged=damaged)
    _ = pack.listing  # a malformed one is refused now, not after hours of work
    return pack


class PairImages(Images):
    """The rows of a verification set: rows 2i and 2i + 1 are pair i, labelled 1 (genuine) or 0 (impostor).

    `identities` are the names of the rows, (2N,), where the set knows them.
    """

    group = 2

    def __init__(self, verification_set: VerificationSet) -> None:
        self._set = verification_set
        self.identities = verification_set.identity_2N
        _, first_P, image_N = np.unique(verification_set.index_2N, return_index=True, return_inverse=True)
        self.first_N = first_P[image_N]

    def __len__(self) -> int:
        return len(self._set.index_2N)

    def encoded(self, i: int) -> bytes:
        return self._set.images[self._set.index_2N[i]]

    def where(self, i: int) -> str:
        return self._set.where(int(self._set.index_2N[i]))

    def name(self, i: int) -> str:
        return f"{self._set.name}/{i // 2}/{i % 2}"

    def label(self, i: int) -> str:
        return str(int(self._set.issame_N[i // 2]))

    def describe(self) -> str:
        return self._set.describe()


def _listed(path: Path) -> tuple[list[str], list[str]]:
    """Paths and labels of a list; without a label the folder's name of the path counts."""
    lines = text_lines(path, "surrogateescape")
    if any("\0" in line for line in lines[:100]):
        raise UserError(
            f"{path}: is neither an image, nor a pack (.rec), a verification set (.bin) or a list of paths"
        )
    paths, labels = [], []
    for line in lines:
        name, _, label = line.partition("\t")
        if name.strip():
            paths.append(name.strip())
            labels.append(label.strip() or PurePosixPath(name.strip()).parent.name)
    if not paths:
        raise MissingDataError(f"{path}: names no images; a list has a path per line")
    return paths, labels


def warn_of_unaligned(source: Path, encoded: Iterable[Encoded], hint: str = "") -> None:
    """Warn where the headers of some images say that they are photographs rather than aligned faces.

    Those are nearly square, and of one size. The hint is `hint`, else the command that makes an aligned pack.
    """
    sizes = []
    for one in encoded:
        with contextlib.suppress(DamagedDataError):  # whoever decodes it will be told
            header = read_header(one)
            sizes.append((header.width, header.height))
    oblong = sum(max(size) > _SQUARE * min(size) for size in sizes)
    if 2 * oblong > len(sizes) or 2 * len(set(sizes)) > max(len(sizes), 4):
        shown = ", ".join(f"{width}×{height}" for width, height in list(dict.fromkeys(sizes))[:3])
        folder = source if source.is_dir() else "FOLDER"
        before = "" if source.is_dir() else f"`facerec-data unpack {source} FOLDER`, then "
        _log.warning(
            "%s: images of %s pixels are hardly aligned faces, which models expect; %s",
            *(source, shown, hint or f"align them: {before}`facerec-data pack --align {folder} OUT`"),
        )
