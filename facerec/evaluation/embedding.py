"""Embed many images: decoded in threads while the backbone runs, shared out over processes, mirrored on
the device.

Each image is embedded once, in the order given. The result does not depend on the batch size, the order or
the number of processes beyond the rounding of the last digits.

Shape suffixes: P images, B batch, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from facerec import distributed
from facerec.errors import DamagedDataError, FacerecError, NonFiniteError, UserError
from facerec.evaluation.files import FileImages
from facerec.evaluation.settings import EvalSettings
from facerec.images.decode import decode_into
from facerec.models.model import Cache, Model
from facerec.threads import in_order

logger = logging.getLogger("facerec.evaluation")

_AHEAD = 2  # batches being decoded while one is in the model
_CPU_BATCH = 32  # of more, MobileFaceNet's activations leave the cache, and an image takes twice as long
_SLICE = 16  # images a decoding task, enough to hide the cost of handing it over

PORTION = 8192  # images embedded before they are used: 32 MB of embeddings of length 512, both views

Where = Callable[[int], str]


class PairSet(Protocol):
    """What the protocol needs of a verification set (`facerec.packs.verification.VerificationSet` is one)."""

    @property
    def name(self) -> str: ...
    @property
    def images(self) -> Any: ...
    @property
    def index_2N(self) -> npt.NDArray[np.integer]: ...
    @property
    def issame_N(self) -> npt.NDArray[np.bool_]: ...
    @property
    def identity_2N(self) -> npt.NDArray[Any] | None: ...
    @property
    def folds(self) -> int | None: ...
    def where(self, image: int, /) -> str: ...


@dataclass(frozen=True)
class Embedded:
    """Raw embeddings of P images and, with flip, of their mirrors; float32 (P, D)."""

    plain_PD: npt.NDArray[np.float32]
    mirrored_PD: npt.NDArray[np.float32] | None

    @property
    def summed_PD(self) -> npt.NDArray[np.float32]:
        """e + e' (e alone without flip), not normalised."""
        return self.plain_PD if self.mirrored_PD is None else self.plain_PD + self.mirrored_PD


def embed_set(
    model: Model,
    verification_set: PairSet,
    *,
    batch_size: int = 128,
    flip: bool = True,
    precision: str = "fp32",
) -> Embedded:
    """`embed_images` for the distinct images of a verification set, with errors that name the pair."""
    return embed_images(
        model,
        verification_set.images,
        name=verification_set.name,
        batch_size=batch_size,
        flip=flip,
        precision=precision,
        where=verification_set.where,
    )


def embed_portions(
    model: Model, images: FileImages, settings: EvalSettings, name: str
) -> Iterator[npt.NDArray[np.float32]]:
    """e + e' (e without flip) of the images, portion by portion: a million are never in memory at once."""
    for first in range(0, len(images), PORTION):
        portion = images[first : first + PORTION]
        yield embed_images(
            model,
            portion,
            name=f"{name} {first:,} of {len(images):,}",
            batch_size=settings.batch_size,
            flip=settings.flip,
            precision=settings.precision,
            where=portion.where,
        ).summed_PD


def embed_images(
    model: Model,
    images: Sequence[Any],
    *,
    name: str = "images",
    batch_size: int = 128,
    flip: bool = True,
    precision: str = "fp32",
    threads: int | None = None,
    where: Where | None = None,
) -> Embedded:
    """Raw embeddings of encoded or decoded images, in their order.

    Under torch.distributed each process embeds a contiguous share and every process returns all embeddings;
    an error in one process is raised in all of them. `model.cache` is asked first.

    Args:
        model: backbone and preprocessing; it runs in eval mode and is left as it was.
        images: encoded files (bytes or uint8 arrays of bytes), or uint8 RGB arrays (size, size, 3).
        name: of the set, for the progress bar (on a terminal only) and errors.
        batch_size: images that go through the backbone at once.
        flip: embed the horizontal mirrors, too.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast); embeddings are float32 always.
        threads: that decode; None: one a core, eight at most.
        where: how errors name image i.

    Raises:
        DamagedDataError: naming an image that cannot be decoded.
        NonFiniteError: naming the first image whose embedding is not finite.
    """
    where = where or (lambda image: f"image {image} of {name}")
    if not len(images):
        raise UserError(f"{name}: no images to embed")
    rank, count = distributed.rank(), distributed.world_size()
    kept, views = None, None
    if model.cache is not None:
        kept, views = _looked_up(model.cache, images, name, flip, precision)
        if views is not None:
            return Embedded(views[0], views[1] if flip else None)
    share = math.ceil(len(images) / count)
    mine = range(min(rank * share, len(images)), min((rank + 1) * share, len(images)))
    error = None
    try:
        views = _embed_share(model, images, mine, name, batch_size, flip, precision, threads, where)
    except Exception as caught:  # whatever it is, the other processes must not wait for this one's share
        if count == 1:
            raise
        error = caught
    if count > 1:
        views = _gather(views, error, len(images), share, 1 + flip, model.device)
    assert views is not None
    finite_P = np.isfinite(views).all(axis=(0, 2))
    if not finite_P.all():
        first = int(np.argmin(finite_P))
        raise NonFiniteError(
            f"the embedding of {where(first)} is not finite, and {int((~finite_P).sum()) - 1} more; "
            "check the model's weights, and its precision"
        )
    if model.cache is not None and kept is not None:
        model.cache.store(kept, views)
    return Embedded(views[0], views[1] if flip else None)


def _looked_up(
    cache: Cache, images: Sequence[Any], name: str, flip: bool, precision: str
) -> tuple[Path | None, npt.NDArray[np.float32] | None]:
    """Where the first process is to keep the embeddings, and those that are kept already, in all of them."""
    path, views = None, None
    if distributed.rank() == 0:
        # An image that cannot be read stops whichever process embeds it, with its place in the message.
        with contextlib.suppress(FacerecError):
            path = cache.path(images, name, flip=flip, precision=precision)
            views = cache.load(path, len(images), 1 + flip)
    return path, distributed.broadcast_object(views)


def _embed_share(
    model: Model,
    images: Sequence[Any],
    mine: range,
    name: str,
    batch_size: int,
    flip: bool,
    precision: str,
    threads: int | None,
    where: Where,
) -> npt.NDArray[np.float32] | None:
    """The embeddings of this process's images, (views, images, D); None where it has none."""
    if not mine:
        return None
    device = model.device
    views: npt.NDArray[np.float32] | None = None
    done = 0
    largest = min(batch_size, _CPU_BATCH) if device.type == "cpu" else batch_size
    batches = _decoded(images, mine, min(largest, len(mine)), model.input.shape, threads, where)
    progress = tqdm(total=len(mine), desc=name, unit="img", leave=False, disable=None)
    with model.evaluating(), progress:
        for image_BHWC, filled in batches:
            batch = torch.from_numpy(image_BHWC)
            if device.type == "cuda":
                batch = batch.pin_memory()
            batch = batch.to(device, non_blocking=True)
            embedded = [model.forward(batch, precision)]
            if flip:
                embedded.append(model.forward(batch.flip(2), precision))
            for view, embedding_BD in enumerate(embedded):
                if embedding_BD.ndim != 2:
                    shape = tuple(embedding_BD.shape)
                    raise UserError(
                        f"the backbone returns {shape} for {len(batch)} images; (B, D) is expected"
                    )
                if views is None:
                    views = np.empty((len(embedded), len(mine), embedding_BD.shape[1]), np.float32)
                views[view, done : done + filled] = embedding_BD[:filled].cpu().numpy()
            done += filled
            progress.update(filled)
    return views


def _decoded(
    images: Sequence[Any],
    mine: range,
    batch_size: int,
    shape: tuple[int, ...],
    threads: int | None,
    where: Where,
) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Batches of decoded images (batch_size, height, width, 3), and how many of them are filled.

    The last one is padded with black, so that every batch has one shape: one kernel choice, one compiled
    graph.
    """

    def tasks() -> Iterator[_Slice]:
        for start in range(mine.start, mine.stop, batch_size):
            stop = min(start + batch_size, mine.stop)
            out_BHWC = np.zeros((batch_size, *shape, 3), np.uint8)
            for at in range(start, stop, _SLICE):
                end = min(at + _SLICE, stop)
                yield _Slice(out_BHWC, stop - start, range(at, end), at - start, end == stop)

    def decode(task: _Slice) -> _Slice:
        for row, index in enumerate(task.images, task.row):
            _decode(images[index], task.out_BHWC[row], where, index)
        return task

    ahead = _AHEAD * math.ceil(batch_size / _SLICE)
    with contextlib.closing(in_order(decode, tasks(), threads, ahead=ahead)) as done:
        for task in done:
            if task.completes:
                yield task.out_BHWC, task.filled


class _Slice(NamedTuple):
    """Images that a thread decodes, into the rows from `row` on of a batch that they may complete."""

    out_BHWC: npt.NDArray[np.uint8]
    filled: int
    images: range
    row: int
    completes: bool


def _decode(image: Any, target_HWC: npt.NDArray[np.uint8], where: Where, index: int) -> None:
    if isinstance(image, np.ndarray) and image.ndim == 3:
        if image.shape != target_HWC.shape or image.dtype != np.uint8:
            raise UserError(
                f"{where(index)} is {image.dtype} of shape {image.shape}; "
                f"the model takes uint8 of shape {target_HWC.shape}"
            )
        target_HWC[...] = image
        return
    try:
        decode_into(image, target_HWC)
    except DamagedDataError as error:
        raise DamagedDataError(f"{where(index)}: {error}") from error


def _gather(
    views: npt.NDArray[np.float32] | None,
    error: Exception | None,
    images: int,
    share: int,
    view_count: int,
    device: torch.device,
) -> npt.NDArray[np.float32]:
    """Every process's shares in every process, or the first error of any process in all of them."""
    width = 0 if views is None else views.shape[2]
    said: FacerecError | None = None
    if isinstance(error, FacerecError):
        said = error
    elif error is not None:
        said = FacerecError(f"process {distributed.rank()} failed: {type(error).__name__}: {error}")
    reports: list[tuple[FacerecError | None, int]] = distributed.all_gather_object((said, width))
    first = next((report for report, _ in reports if report is not None), None)
    if first is not None:
        raise error or first
    width = max(width for _, width in reports)
    place = device if distributed.carries(device) else torch.device("cpu")
    mine = torch.zeros(view_count, share, width, device=place)
    if views is not None:
        mine[:, : views.shape[1]] = torch.from_numpy(views).to(place)
    shares_PVD = distributed.all_gather(mine.transpose(0, 1))
    return shares_PVD[:images].transpose(0, 1).cpu().numpy()
