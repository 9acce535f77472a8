"""Embeddings as a file: one without a name to work on; for other programs `.npy` with names, or `.parquet`.

Images are read, embedded and written portion by portion, so that any number of them fits.

Shape suffixes: N rows, P distinct images of them, R those that were embedded, D embedding size.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError, FacerecError, MissingDataError, UserError, counted, require
from facerec.evaluation.embedding import Embeddings, Portion, embed_any
from facerec.files import csv_lines, nameless, refuse_overwriting, replacing, replacing_both, storing
from facerec.images.images import Images
from facerec.models.model import Model
from facerec.vectors import unit_rows

Ints = npt.NDArray[np.int64]

_BLOCK: Final = 8192  # rows written at once

_Blocks = Iterator[tuple[Embeddings, list[str], list[str]]]
_Write = Callable[[Path, tuple[int, int], _Blocks, dict[str, str]], list[Path]]


class Written(NamedTuple):
    """Numbers of rows, of numbers per row, of images left out or resized; and the files."""

    rows: int
    embedding_size: int
    skipped: int
    resized: int
    files: list[Path]


@dataclass(frozen=True)
class EmbeddedImages:
    """The embeddings of the images of a set that could be embedded.

    Attributes:
        row_RD: float32, memory-mapped.
        position_R: of each row's image in the set; equal images of a set that knows them are embedded once.
        damaged: why each other image could not be embedded.
    """

    row_RD: Embeddings
    position_R: Ints
    damaged: dict[int, str]


def embed_rows(
    model: Model,
    images: Images,
    place: Path | None = None,
    *,
    normalise: bool = True,
    seen: Callable[[Portion], Any] | None = None,
    **how: Any,
) -> EmbeddedImages:
    """Embed images into a file without a name, which is gone when nothing uses it any more.

    Args:
        place: the file lies beside it, 4·D bytes per image, and errors name it; None: among temporary files.
        normalise: to unit length; a zero embedding stays zero.
        seen: is called with each portion while its pixels are at hand.
        how: flip, batch_size, precision, align, as `embed_any` takes them.

    Raises:
        DamagedDataError: not one image could be embedded.
        NonFiniteError: an embedding, named.
        StorageError: the disk is full or the folder cannot be written.
    """
    positions: list[int] = []
    damaged: dict[int, str] = {}
    size = 0
    place = Path(tempfile.gettempdir()) / "embeddings" if place is None else place
    with storing(place), nameless(place.parent) as file:
        for portion in embed_any(model, images, **how):
            if seen is not None:
                seen(portion)
            damaged |= {i: str(error) for i, error in portion.failed.items()}
            if portion.embedding_PD is not None:
                positions += portion.positions
                size = portion.embedding_PD.shape[1]
                row_PD = unit_rows(portion.embedding_PD) if normalise else portion.embedding_PD
                file.write(np.ascontiguousarray(row_PD).data)
        if not positions:
            reason = next(iter(damaged.values()), "there are none")
            raise DamagedDataError(f"0 of {counted(len(damaged), 'image')} could be embedded: {reason}")
        file.flush()
        row_RD = np.memmap(file, np.float32, "r", shape=(len(positions), size))
    return EmbeddedImages(row_RD, np.array(positions, np.int64), damaged)


def embed_to_file(
    model: Model,
    images: Images,
    out: str | Path,
    *,
    flip: bool = True,
    normalise: bool = False,
    batch_size: int = 128,
    precision: str = "fp32",
    on_error: Literal["raise", "skip"] = "raise",
    align: bool = False,
    force: bool = False,
) -> Written:
    """Write a float32 embedding for each of `images`, which may be of any size.

    ``OUT.npy`` is an array (N, D), beside it ``OUT.names.csv`` with a line ``name,label`` per row (and an
    apostrophe before a text that a spreadsheet would take for a formula);
    ``OUT.parquet`` has the columns name, label and embedding (extra ``parquet``). Images left out stand in
    ``OUT.skipped.csv``. Each file appears when it is complete.

    Args:
        model, images, flip, batch_size, precision: see `embed_images`; here e + e' is written.
        out: its suffix decides.
        normalise: to unit length; a zero embedding stays zero.
        on_error: at an image that cannot be read or decoded, or where no face is found: ``raise``, or
            ``skip`` it (where images are pairs, the pair).
        align: find the face in each image and align it (extra ``align``); else they are aligned already,
            and resized by the short side and cut from the middle where their size is another.
        force: replace files that are there.

    Raises:
        UserError: another suffix, a file that is there, a missing package.
        ConfigError: `batch_size` out of range.
        MissingDataError, DamagedDataError: an image, named; or there is none that can be embedded.
        NonFiniteError: an embedding, named.
        StorageError: the disk is full or the folder cannot be written.
    """
    out = Path(out)
    require(batch_size >= 1, "--batch-size", batch_size, "must be 1 or more")
    write, report = check_out(out, force=force)
    resized = 0

    def seen(portion: Portion) -> None:
        nonlocal resized
        for image, error in portion.failed.items() if on_error == "raise" else ():
            raise _unusable(images.where(image), error)
        resized += portion.resized

    how = {"flip": flip, "batch_size": batch_size, "precision": precision, "align": align}
    embedded = embed_rows(model, images, out, normalise=normalise, seen=seen, **how)
    row_N = np.full(len(images), -1, np.int64)
    row_N[embedded.position_R] = np.arange(len(embedded.position_R))
    if images.first_N is not None:
        row_N = row_N[images.first_N]
    complete = (row_N >= 0).reshape(-1, images.group).all(1)
    kept_N = np.flatnonzero(np.repeat(complete, images.group))
    about = {
        "facerec.ckpt": str(model.path),
        "facerec.input": json.dumps(model.input.to_dict()),
        "facerec.flip": json.dumps(flip),
        "facerec.normalised": json.dumps(normalise),
    }
    size, skipped = embedded.row_RD.shape[1], embedded.damaged
    written = write(out, (len(kept_N), size), _blocks(embedded.row_RD, row_N, images, kept_N), about)
    report.unlink(missing_ok=True)  # one of an earlier run
    if skipped:
        with replacing(report) as listing:
            rows = ((images.where(image), reason) for image, reason in skipped.items())
            listing.write(csv_lines(chain([("image", "reason")], rows)))
        written.append(report)
    return Written(len(kept_N), size, len(skipped), resized, written)


def check_out(out: Path, *, force: bool) -> tuple[_Write, Path]:
    """Return the writer of `out`, and the file beside it of the images left out.

    Raises:
        UserError: the suffix is another one, its package is missing, or a file is there and no `force`.
    """
    write, report = _writer(out), out.with_suffix(".skipped.csv")
    for path in (out, report) if write is _write_parquet else (out, _names(out), report):
        refuse_overwriting(path, force)
    return write, report


def _unusable(where: str, error: DamagedDataError | MissingDataError) -> FacerecError:
    """The same error with the place and the hint."""
    said = str(error) if where in str(error) else f"{where}: {error}"
    kind = MissingDataError if isinstance(error, MissingDataError) else DamagedDataError
    return kind(f"{said}; --on-error skip leaves such images out")


# Files --------------------------------------------------------------------------------------------------


def _writer(out: Path) -> _Write:
    if out.suffix == ".npy":
        return _write_npy
    if out.suffix != ".parquet":
        raise UserError(f"{out}: the name must end in .npy or .parquet")
    try:
        import pyarrow.parquet  # noqa: F401 - before any work is lost
    except ImportError as error:
        raise UserError(f"{out}: writing Parquet needs pyarrow; pip install 'facerec[parquet]'") from error
    return _write_parquet


def _blocks(row_RD: Embeddings, row_N: Ints, images: Images, kept_N: Ints) -> _Blocks:
    """Embeddings, names and labels of the rows that are kept, some thousand at a time."""
    for first in range(0, len(kept_N), _BLOCK):
        rows = kept_N[first : first + _BLOCK]
        listed = rows.tolist()
        names, labels = [images.name(row) for row in listed], [images.label(row) for row in listed]
        yield np.asarray(row_RD[row_N[rows]]), names, labels


def _names(out: Path) -> Path:
    """The file of names beside an `.npy`."""
    return out.with_suffix(".names.csv")


def _write_npy(out: Path, shape: tuple[int, int], blocks: _Blocks, about: dict[str, str]) -> list[Path]:
    with replacing_both(out, _names(out)) as (array, listing):
        np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": shape})
        listing.write(csv_lines([("name", "label")]))
        for embedding_ND, name_N, label_N in blocks:
            array.write(np.ascontiguousarray(embedding_ND, dtype="<f4").data)
            listing.write(csv_lines(zip(name_N, label_N, strict=True)))
    return [out, _names(out)]


def _write_parquet(out: Path, shape: tuple[int, int], blocks: _Blocks, about: dict[str, str]) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    embeddings = pa.list_(pa.float32(), shape[1])
    schema = pa.schema([("name", pa.string()), ("label", pa.string()), ("embedding", embeddings)], about)
    with replacing(out) as file, parquet.ParquetWriter(file, schema) as writer:
        for embedding_ND, name_N, label_N in blocks:
            flat = pa.array(np.ascontiguousarray(embedding_ND).reshape(-1))
            columns = [
                pa.array(map(_unicode, name_N), pa.string()),
                pa.array(map(_unicode, label_N), pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, shape[1]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return [out]


def _unicode(name: str) -> str:
    """A file's name as Parquet can hold it: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
