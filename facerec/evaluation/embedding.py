"""Embed many images: decoded in threads while the backbone runs, sharded over ranks, mirrored on the device.

Each image is embedded once, in the order given. The result does not depend on the batch size, the order or
the world size beyond the rounding of the last digits.

Shape suffixes: P images, V views (plain, mirrored), B batch, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facerec import distributed
from facerec.device import copied, number_format
from facerec.errors import (
    DamagedDataError,
    FacerecError,
    MissingDataError,
    NonFiniteError,
    UserError,
    counted,
)
from facerec.evaluation.settings import EvalSettings
from facerec.images.align import middle
from facerec.images.decode import Encoded, Pixels, decode_full_size, fit_into, ppm
from facerec.images.face_maker import FaceMaker
from facerec.images.images import MAX_PIXELS, Images
from facerec.models.model import Model
from facerec.progress import Bar
from facerec.threads import ordered_map
from facerec.vectors import row_norms

PORTION = 8192  # images embedded before they are used: 32 MB of embeddings of length 512, both views
HELD: Final = 1024  # images of any size decoded while as many are in the model: 2 × 38 MB at 112×112
_SLICE: Final = 16  # of these per task of a thread
_AHEAD = 8  # batches decoded or being decoded while one is in the model
_CPU_BATCH = 32  # of more, MobileFaceNet's activations leave the cache, and an image takes twice as long

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Raw embeddings of P images and, with flip, of their mirrors; float32 (P, D)."""

    plain_PD: Embeddings
    mirrored_PD: Embeddings | None = None

    @property
    def summed_PD(self) -> Embeddings:
        """e + e' (e alone without flip), not normalised."""
        return self.plain_PD if self.mirrored_PD is None else self.plain_PD + self.mirrored_PD


class HeldImages(Images):
    """Images in memory: encoded files (bytes or uint8 arrays of bytes), or uint8 RGB arrays (H, W, C)."""

    def __init__(self, images: Sequence[Any], where: Callable[[int], str]) -> None:
        self._images, self._where = images, where

    def __len__(self) -> int:
        return len(self._images)

    def encoded(self, i: int) -> Encoded:
        image = self._images[i]
        return ppm(image) if getattr(image, "ndim", 1) == 3 else memoryview(image)

    def decode_into(self, i: int, out_HWC: Pixels, max_pixels: int = MAX_PIXELS) -> None:
        image = self._images[i]
        if getattr(image, "ndim", 1) != 3:
            super().decode_into(i, out_HWC, max_pixels)
        elif image.shape != out_HWC.shape or image.dtype != np.uint8:
            raise UserError(
                f"{self.where(i)} is {image.dtype} of shape {image.shape}; "
                f"the model takes uint8 of shape {out_HWC.shape}"
            )
        else:
            out_HWC[...] = image

    def where(self, i: int) -> str:
        return self._where(i)

    def describe(self) -> str:
        return f"{counted(len(self), 'image')} in memory"


def embed_portions(
    model: Model,
    images: Images,
    settings: EvalSettings,
    name: str,
    positions: Sequence[int] | npt.NDArray[np.integer] | None = None,
) -> Iterator[Embeddings]:
    """e + e' (e without flip) of the images (at `positions`), portion by portion: a million are never in
    memory at once."""
    positions = range(len(images)) if positions is None else positions
    for first in range(0, len(positions), PORTION):
        yield embed_images(
            model,
            images,
            positions=positions[first : first + PORTION],
            name=f"{name} {first:,} of {len(positions):,}",
            batch_size=settings.batch_size,
            flip=settings.flip,
            precision=settings.precision,
        ).summed_PD


def embed_images(
    model: Model,
    images: Images | Sequence[Any],
    *,
    positions: Sequence[int] | npt.NDArray[np.integer] | None = None,
    name: str = "images",
    batch_size: int = 128,
    flip: bool = True,
    precision: str = "fp32",
) -> Embedded:
    """Raw embeddings of images, in their order.

    Under torch.distributed each rank embeds a contiguous shard and every rank returns all embeddings; an
    error on one rank is raised on all of them. `model.cache` is asked first.

    Args:
        model: backbone and preprocessing; it runs in eval mode and is left as it was.
        images: a set of images, or a sequence as `HeldImages` takes it, whose arrays have the model's size.
        positions: of the images to be embedded; None: all.
        name: of the set, for the progress bar (on a terminal only) and errors.
        batch_size: images that go through the backbone at once.
        flip: embed the horizontal mirrors, too.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16`` (autocast); embeddings are float32 always.

    Raises:
        DamagedDataError: naming an image that cannot be decoded.
        NonFiniteError: naming the first image whose embedding, or its norm, is not finite.
    """
    if not isinstance(images, Images):
        images = HeldImages(images, lambda image: f"image {image} of {name}")
    position_P = np.arange(len(images)) if positions is None else np.asarray(positions)
    if not len(position_P):
        raise UserError(f"{name}: no images to embed")
    precision = number_format(precision, model.device)
    key = None
    if model.cache is not None:
        key, views_VPD = model.cache.look_up(images, position_P, name, flip=flip, precision=precision)
        if views_VPD is not None:
            return Embedded(*views_VPD)
    shard = math.ceil(len(position_P) / distributed.world_size())
    mine_P = position_P[distributed.rank() * shard :][:shard]
    views_VPD, error = None, None
    try:
        views_VPD = _embed_shard(model, images, mine_P, name, batch_size, flip, precision)
    except Exception as caught:  # whatever it is, the other ranks must not wait for this one's shard
        if distributed.world_size() == 1:
            raise
        error = caught
    if distributed.world_size() > 1:
        views_VPD = _gather(views_VPD, error, 1 + flip, model.device)
    assert views_VPD is not None
    embedded = Embedded(*views_VPD)
    with np.errstate(over="ignore", invalid="ignore"):
        summed_PD = embedded.summed_PD
    norm_VP = np.stack([row_norms(rows_PD) for rows_PD in (*views_VPD, summed_PD)])
    finite_P: npt.NDArray[np.bool_] = np.isfinite(norm_VP).all(axis=0)
    if not finite_P.all():
        first, more = images.where(int(position_P[np.argmin(finite_P)])), int((~finite_P).sum()) - 1
        others = f", and of {more:,} more of {counted(len(finite_P), 'image')}," if more else ""
        raise NonFiniteError(
            f"the embedding of {first}{others} is not finite, or longer than float32 holds; "
            "check the model's weights, and its precision"
        )
    if model.cache is not None and key is not None:
        model.cache.store(key, views_VPD)
    return embedded


def _embed_shard(
    model: Model,
    images: Images,
    mine_P: npt.NDArray[np.integer],
    name: str,
    batch_size: int,
    flip: bool,
    precision: str,
) -> Embeddings | None:
    """The embeddings of this rank's images, (V, P, D); None where it has none."""
    if not len(mine_P):
        return None
    largest = min(batch_size, _CPU_BATCH) if model.device.type == "cpu" else batch_size
    batches = _decoded(images, mine_P, min(largest, len(mine_P)), model.input.shape)
    progress = Bar(total=len(mine_P), desc=name, unit="images", leave=False)
    parts: list[torch.Tensor] = []
    queued: list[torch.Tensor] = []  # on the device, which the host waits for once a portion
    with model.evaluating(), progress, contextlib.closing(batches):
        for image_BHWC, filled in batches:
            batch = torch.from_numpy(image_BHWC)
            if model.device.type == "cuda":
                batch = batch.pin_memory()
            (batch,) = copied(model.device, batch)
            views = [batch, batch.flip(2)] if flip else [batch]
            embedding_VBD = torch.stack([model.forward(view, precision) for view in views])
            if embedding_VBD.ndim != 3:
                shape = tuple(embedding_VBD.shape[1:])
                raise UserError(
                    f"the backbone returns {shape} for {counted(len(batch), 'image')}; (B, D) is expected"
                )
            queued.append(embedding_VBD[:, :filled])
            if len(queued) * largest >= PORTION:
                parts.append(torch.cat(queued, dim=1).cpu())
                queued.clear()
            progress.update(filled)
        parts += [embedding_VBD.cpu() for embedding_VBD in queued]
    return torch.cat(parts, dim=1).numpy()


def _decoded(
    images: Images, mine_P: npt.NDArray[np.integer], batch_size: int, shape: tuple[int, ...]
) -> Generator[tuple[Pixels, int], None, None]:
    """Batches of decoded images (B, H, W, C), and how many of them are filled.

    The last one is padded with black, so that every batch has one shape: one kernel choice, one compiled
    graph.
    """

    def decode(start: int) -> tuple[Pixels, int]:
        some = mine_P[start : start + batch_size].tolist()
        batch_BHWC = np.zeros((batch_size, *shape, 3), np.uint8)
        for row, image in enumerate(some):
            images.decode_into(image, batch_BHWC[row])
        return batch_BHWC, len(some)

    return ordered_map(decode, range(0, len(mine_P), batch_size), ahead=_AHEAD)


def _gather(
    views_VPD: Embeddings | None, error: Exception | None, views: int, device: torch.device
) -> Embeddings:
    """All-gather the shards (V, P, D), or raise the first error of any rank on all of them."""
    reported = error if error is None or isinstance(error, FacerecError) else None
    if error is not None and reported is None:
        reported = FacerecError(f"process {distributed.rank()} failed: {type(error).__name__}: {error}")
    shape = (0, 0) if views_VPD is None else views_VPD.shape[1:]
    errors, sizes, widths = zip(*distributed.all_gather_object((reported, *shape)), strict=True)
    first = next(filter(None, errors), None)
    if first is not None:
        raise error or first
    mine_VPD = torch.zeros(views, 0, max(widths)) if views_VPD is None else torch.from_numpy(views_VPD)
    mine_PVD = mine_VPD.transpose(0, 1).to(device if distributed.carries(device) else "cpu")
    return distributed.all_gather(mine_PVD, sizes).transpose(0, 1).cpu().numpy()


class Portion(NamedTuple):
    """Some distinct images of a set.

    Attributes:
        positions: of the images that were embedded.
        images: their pixels, uint8 RGB of the model's size.
        embedding_PD: float32 e + e' (e without flip), not normalised; None where there are none.
        failed: why each of the others could not be decoded, or has no face.
        resized: how many were of another size.
    """

    positions: list[int]
    images: list[Pixels]
    embedding_PD: Embeddings | None
    failed: dict[int, DamagedDataError | MissingDataError]
    resized: int


def embed_any(
    model: Model,
    images: Images,
    *,
    flip: bool = True,
    batch_size: int = 128,
    precision: str = "fp32",
    align: bool = False,
) -> Iterator[Portion]:
    """Embed each distinct image, of any size, see `embed_images`; `model.cache` keeps portions.

    Images that cannot be decoded are passed over and named. The next images are decoded meanwhile.

    Args:
        align: find the face in each image and align it (extra ``align``); else they are aligned already, and
            resized by the short side and cut from the middle where their size is another.

    Raises:
        NonFiniteError: an embedding, named.
    """
    maker = _aligning(model) if align else None
    distinct_P = np.arange(len(images)) if images.first_N is None else np.unique(images.first_N)

    def prepare(first: int) -> list[_Prepared]:
        some = distinct_P[first : first + _SLICE].tolist()
        return [_prepared(images, i, model.input.shape, maker) for i in some]

    slices = range(0, len(distinct_P), _SLICE)
    with contextlib.closing(ordered_map(prepare, slices, ahead=HELD // _SLICE)) as done:
        prepared = chain.from_iterable(done)
        for first in range(0, len(distinct_P), HELD):
            some = distinct_P[first : first + HELD].tolist()
            faces = dict(zip(some, islice(prepared, len(some)), strict=True))
            kept = {i: face.image_HWC for i, face in faces.items() if face.image_HWC is not None}
            positions, pixels, embedding_PD = list(kept), list(kept.values()), None
            if kept:
                embedding_PD = embed_images(
                    model,
                    HeldImages(pixels, lambda i, kept=positions: images.where(kept[i])),  # type: ignore[misc]
                    name=f"embedding {some[0]:,} of {len(images):,}",
                    flip=flip,
                    batch_size=batch_size,
                    precision=precision,
                ).summed_PD
            failed = {i: face.error for i, face in faces.items() if face.error is not None}
            resized = sum(face.resized for face in faces.values())
            yield Portion(positions, pixels, embedding_PD, failed, resized)


class _Prepared(NamedTuple):
    """An image for the model, or why there is none."""

    image_HWC: Pixels | None
    error: DamagedDataError | MissingDataError | None = None
    resized: bool = False


def _aligning(model: Model) -> FaceMaker:
    from facerec.images.detection import Mtcnn

    return FaceMaker(max(model.input.shape), detector=Mtcnn())


def _prepared(images: Images, image: int, shape: tuple[int, ...], maker: FaceMaker | None) -> _Prepared:
    try:
        encoded = images.encoded(image)
        if maker is not None:
            image_HWC, note, _ = maker.face(encoded)
            if image_HWC is None:
                return _Prepared(None, DamagedDataError(note))
            return _Prepared(middle(image_HWC, shape))
        image_HWC = decode_full_size(encoded)
    except (DamagedDataError, MissingDataError) as error:
        return _Prepared(None, error)
    fitted_HWC = np.empty((*shape, 3), np.uint8)
    fit_into(image_HWC, fitted_HWC)
    return _Prepared(fitted_HWC, resized=image_HWC.shape != fitted_HWC.shape)
