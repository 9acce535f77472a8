"""Batches of decoded faces: threads decode straight into one uint8 buffer per batch, a few batches ahead.

Threads and not processes: the decoder releases the interpreter lock, and an image is never copied, pickled
or made an object of its own. What a batch holds follows from (seed, epoch, position) alone (see `order`).
Two threads on two cores reach 0.8 of the decoder alone, 0.6 with `prepare` (`scripts/benchmark data`).

Shape suffixes: B images of a batch, G of a global batch (that of all ranks), N any number, H height, W width,
C colour channels (RGB).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from facerec.errors import DamagedDataError, MissingDataError, counted, require
from facerec.images import buffers
from facerec.images.augment import Augmentation, AugmentSettings
from facerec.images.decode import Pixels
from facerec.images.device_decode import Undecoded, for_device
from facerec.images.images import LabelledImages
from facerec.loading.batch import Batch
from facerec.loading.order import IdentityOrder, MixtureOrder, Order, count_batches, mirrored, rank_part
from facerec.loading.settings import DataSettings
from facerec.randomness import Positions
from facerec.registry import build
from facerec.threads import ordered_map

log = logging.getLogger(__name__)

_CHUNK = 32  # images a thread decodes at a time: about 3 ms, a hundred times the cost of handing them over
_LOOKUP = 8192  # positions of the order looked up at a time
_LOGGED_SKIPS = 5  # undecodable images named in the log before they are only counted
_MAX_SKIPS = 1000  # undecodable images in a row after which skipping is no longer the answer


@dataclass
class _Chunk:
    """Neighbouring images begin … end−1 of a batch: the work of a thread, and its results."""

    batch: Batch
    begin: int
    end: int
    replaced: list[tuple[int, int, dict[int, str]]] = field(default_factory=list)
    """Slot, image put there, why not the others."""
    images: list[torch.Tensor] = field(default_factory=list)  # for `Undecoded`


@dataclass(eq=False)
class Loader:
    """Decoded batches of a set of images.

    A smaller last batch is divided among the ranks as evenly as possible. In place of an image that does not
    decode, ``data.on_error=skip`` takes the next one of the set that does (so in a pack sorted by identity
    usually one of the same identity), and counts it. The batches take (prefetch + 1)·batch_size·H·W·3 bytes.

    Args:
        faces: the images.
        batch_size: images per rank and batch.
        settings: their order, and how they are decoded and changed.
        seed: of the order and of every random choice.
        pin: allocate batches in pinned memory, for copies to CUDA that do not wait.

    Raises:
        ConfigError: an order that these images or batches cannot have.
        MissingDataError: the set has too few images for one batch.
    """

    faces: LabelledImages
    batch_size: int
    settings: DataSettings = field(default_factory=DataSettings)
    _: KW_ONLY
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    pin: bool = False

    def __post_init__(self) -> None:
        self.height, self.width = self.settings.shape
        self.augment = build(AugmentSettings, "data.augment", self.settings.augment)
        self.on_device = self.settings.decoder == "device"
        self.order = self._order()
        self._undecodable: set[int] = set()
        if not self.batches_per_epoch():
            raise MissingDataError(
                f"{self.faces.title} at {self.faces.root} has {counted(len(self.faces), 'image')}, "
                f"too few for one batch: trainer.batch_size={self.batch_size} on {self.world_size} "
                "process(es); lower it, or take more data"
            )

    def changed(self, faces: LabelledImages, settings: DataSettings) -> Loader:
        """Return a loader with other settings; of the same images it goes on counting damaged ones."""
        other = replace(self, faces=faces, settings=settings)
        if faces is self.faces:
            other._undecodable = self._undecodable
        return other

    def _order(self) -> Order:
        data, mixture = self.settings, self.faces.mixture
        if data.shuffle != "identity":
            how: Any = {"shuffle": data.shuffle, "block_size": data.block_size, "window": data.window}
            if mixture is not None:
                return MixtureOrder(*mixture, seed=self.seed, **how)
            return Order(len(self.faces), seed=self.seed, **how)
        hint = "draws identities of all sources alike, without data.weights; leave these out"
        require(mixture is None, "data.shuffle", "identity", hint)
        k = data.images_per_identity
        hint = f"must divide trainer.batch_size={self.batch_size}"
        require(self.batch_size % k == 0, "data.images_per_identity", k, hint)
        return IdentityOrder(self.faces.label_N, seed=self.seed, images_per_identity=k)

    @property
    def skipped(self) -> int:
        """Different images that this rank could not decode and replaced, so far."""
        return len(self._undecodable)

    def batches_per_epoch(self, start: int = 0) -> int:
        """Batches of an epoch that remain when all ranks have taken `start` samples of it."""
        how = {"world_size": self.world_size, "start": start}
        return count_batches(len(self.faces), self.batch_size, **how, drop_last=self.settings.drop_last)

    def smallest_batch(self, start: int = 0) -> int:
        """Images of the smallest batch that a rank gets of an epoch, from sample `start` on."""
        left, step = len(self.faces) - start, self.batch_size * self.world_size
        kept = self.batches_per_epoch(start) * step > left  # the rest of the epoch
        return left % step // self.world_size if kept else self.batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from sample `start` on.

        `start` is the `position` of the batch before, whatever the number of ranks then and now.

        Raises:
            DamagedDataError: at the first image in the order that does not decode (``on_error="raise"``).
        """
        skipped_before = self.skipped
        work = self._read_chunk if self.on_device else self._decode_chunk
        ahead = self.settings.prefetch * -(-self.batch_size // _CHUNK)
        chunks = self._chunks(epoch, start)
        with contextlib.closing(ordered_map(work, chunks, self.settings.workers, ahead=ahead)) as done:
            for chunk in done:
                if self._finish_chunk(chunk):
                    self._set_labels(chunk.batch, epoch)
                    yield chunk.batch
        if self.skipped > skipped_before:
            log.warning(
                "epoch %d: images that did not decode and were replaced: %d for the first time, %d in all",
                epoch,
                self.skipped - skipped_before,
                self.skipped,
            )

    def _global_batches(self, epoch: int, start: int) -> Iterator[tuple[int, Positions]]:
        """Yield the first position of each global batch of the epoch, and its images."""
        step = self.batch_size * self.world_size
        taken, index_N = start, self.order.take(epoch, start, start)
        for begin in range(start, start + self.batches_per_epoch(start) * step, step):
            end = min(begin + step, len(self.faces))
            if end > taken + len(index_N):  # many at a time: for one batch alone this takes ten times as long
                taken = begin
                index_N = self.order.take(epoch, begin, min(max(end, begin + _LOOKUP), len(self.faces)))
            yield begin, index_N[begin - taken : end - taken]

    def _chunks(self, epoch: int, start: int) -> Iterator[_Chunk]:
        """Yield the chunks of an epoch; with the first of a batch, allocate it and prefetch its bytes."""
        for begin, index_G in self._global_batches(epoch, start):
            batch = self._batch(epoch, begin, index_G)
            # Start reading now, several batches before a thread needs the bytes.
            prefetch_B = batch.index_B
            if self.settings.shuffle == "block":
                prefetch_B = self.order.to_read(epoch, begin, batch.position, first=begin == start)
            self.faces.prefetch(prefetch_B.tolist())
            count = len(batch.index_B)
            for a in range(0, count, _CHUNK):
                yield _Chunk(batch, a, min(a + _CHUNK, count))

    def _batch(self, epoch: int, begin: int, index_G: Positions) -> Batch:
        """Return a batch whose images, labels and mirrors are yet to be filled in."""
        end = begin + len(index_G)
        parts = [rank_part(begin, end, rank, self.world_size) for rank in range(self.world_size)]
        first, stop = parts[self.rank]
        index_B = index_G[first - begin : stop - begin].copy()
        count = len(index_B)
        shape = (0 if self.on_device else count, self.height, self.width, 3)
        batch = Batch(
            buffers.empty(shape, torch.uint8, pin=self.pin),
            torch.empty(count, dtype=torch.int64, pin_memory=self.pin),
            torch.zeros(count, dtype=torch.bool, pin_memory=self.pin),
            index_B,
            end,
            tuple(stop - start for start, stop in parts),
        )
        if self.augment.active:
            batch = batch._replace(augment=Augmentation(self.augment, self.seed, epoch, index_B))
        if self.on_device:
            retry = partial(self._retry, batch, epoch)
            batch = batch._replace(undecoded=Undecoded([], (self.height, self.width), retry))
        return batch

    def _decode_chunk(self, chunk: _Chunk) -> _Chunk:
        """In a thread: decode images into their slots."""
        slots_BHWC = chunk.batch.image_BHWC.numpy()
        for slot in range(chunk.begin, chunk.end):
            self._load_slot(chunk, slot, slots_BHWC[slot])
        return chunk

    def _read_chunk(self, chunk: _Chunk) -> _Chunk:
        """In a thread: read the encoded images; decode those that the device cannot."""
        for slot in range(chunk.begin, chunk.end):
            encoded = None
            with contextlib.suppress(DamagedDataError):  # raised again and handled by _load_slot
                encoded = for_device(self.faces.encoded(chunk.batch.index_B.item(slot)))
            if encoded is None:
                pixels_HWC = np.empty((self.height, self.width, 3), np.uint8)
                self._load_slot(chunk, slot, pixels_HWC)
                encoded = torch.from_numpy(pixels_HWC)
            chunk.images.append(encoded)
        return chunk

    def _load_slot(self, chunk: _Chunk, slot: int, out_HWC: Pixels) -> None:
        taken, reasons = self._load(chunk.batch.index_B.item(slot), out_HWC)
        if reasons:
            chunk.replaced.append((slot, taken, reasons))

    def _load(self, index: int, out_HWC: Pixels) -> tuple[int, dict[int, str]]:
        """Decode an image, or the next that decodes; return its position, and why those before it do not."""
        reasons: dict[int, str] = {}
        for step in range(min(_MAX_SKIPS, len(self.faces))):
            taken = (index + step) % len(self.faces)
            try:
                self.faces.decode_into(taken, out_HWC)
            except DamagedDataError as error:
                if self.settings.on_error == "raise":
                    hint = "data.on_error=skip trains without such images, and counts them"
                    raise DamagedDataError(f"{error}; {hint}") from error
                reasons[taken] = str(error)
            else:
                return taken, reasons
        raise DamagedDataError(f"{len(reasons)} images in a row do not decode; the first: {reasons[index]}")

    def _finish_chunk(self, chunk: _Chunk) -> bool:
        """Record the results of a chunk, in the order of the images; return True if its batch is complete."""
        if chunk.batch.undecoded is not None:
            chunk.batch.undecoded.images += chunk.images
        for slot, taken, reasons in chunk.replaced:
            chunk.batch.index_B[slot] = taken
            self._count_skipped(reasons)
        return chunk.end == len(chunk.batch.index_B)

    def _retry(self, batch: Batch, epoch: int, slot: int) -> Pixels:
        """Return the pixels of an image that the device does not decode, or of one that replaces it."""
        pixels_HWC = np.empty((self.height, self.width, 3), np.uint8)
        batch.index_B[slot], reasons = self._load(batch.index_B.item(slot), pixels_HWC)
        self._count_skipped(reasons)
        self._set_labels(batch, epoch)
        return pixels_HWC

    def _set_labels(self, batch: Batch, epoch: int) -> None:
        """Set the labels and mirrors of the images in a batch."""
        batch.label_B.numpy()[:] = self.faces.label_N[batch.index_B]
        if self.settings.mirror:
            batch.mirror_B.numpy()[:] = mirrored(self.seed, epoch, batch.index_B)

    def _count_skipped(self, reasons: dict[int, str]) -> None:
        """Count images that do not decode and name the first few of them in the log."""
        for index, reason in reasons.items():
            if index in self._undecodable:
                continue
            self._undecodable.add(index)
            if len(self._undecodable) <= _LOGGED_SKIPS:
                log.warning("skipped an image that does not decode: %s", reason)
            elif len(self._undecodable) == _LOGGED_SKIPS + 1:
                log.warning("further images that do not decode are only counted")
