"""A backbone with its preprocessing.

Shape suffixes: B batch, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from facerec.backbones.base import in_eval_mode
from facerec.device import autocast
from facerec.errors import UserError
from facerec.images.preprocessing import Preprocessing
from facerec.vectors import unit_rows

if TYPE_CHECKING:
    from facerec.evaluation.embedding_cache import EmbeddingCache


@dataclass(frozen=True)
class Threshold:
    """Where a model says "same", as `facerec.evaluation.details.choose_threshold` chose it.

    Attributes:
        cosine: two faces are of one identity where their cosine is above it.
        far: FAR that was asked for, the highest that the set may show.
        tar: the part of the set's genuine pairs that is accepted.
        set: name of the set, ``lfw``.
        genuine, impostor: numbers of its pairs.
        slope, intercept: of the log-odds of "same" over the cosine, where both are as frequent.
        flip: embeddings are sums over an image and its mirror.
    """

    cosine: float
    far: float
    tar: float
    set: str
    genuine: int
    impostor: int
    slope: float
    intercept: float
    flip: bool = True

    def probability(self, cosine: float, prior: float = 0.5) -> float:
        """Probability, 0 … 1, that two faces of this cosine are of one identity.

        Args:
            cosine: of their embeddings.
            prior: how many of the pairs that are met are of one identity, above 0 and below 1.
        """
        odds = self.slope * cosine + self.intercept + math.log(prior / (1 - prior))
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.4f}: FAR {self.far:g}, TAR {self.tar:.4f} on {self.set} "
            f"({self.genuine:,} genuine and {self.impostor:,} impostor pairs)"
        )


@dataclass(eq=False)
class Model:
    """A backbone and its preprocessing, as checkpoints hold it and evaluation uses it.

    Attributes:
        backbone: module from (B, 3, size, size) float to (B, D) raw embeddings.
        step, epoch, identities: of its training, where known.
        path: the file it was read from.
        config: the settings of its training, of an export those of the backbone alone.
        knows_input: the preprocessing came with the model; else it was taken for granted or given.
        weights: ``raw``, or ``ema``, the moving average of them (`trainer.ema`).
        cache: keeps its embeddings between runs.
        threshold: what its exported file calls "same".
    """

    backbone: nn.Module
    input: Preprocessing = field(default_factory=Preprocessing)
    _: KW_ONLY
    step: int | None = None
    epoch: int | None = None
    path: Path | None = None
    identities: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    knows_input: bool = True
    weights: Literal["raw", "ema"] = "raw"
    cache: EmbeddingCache | None = None
    threshold: Threshold | None = None

    @property
    def device(self) -> torch.device:
        """The device of the backbone's parameters."""
        return next((parameter.device for parameter in self.backbone.parameters()), torch.device("cpu"))

    def embed(
        self,
        images_BHWC: np.ndarray | torch.Tensor,
        flip: bool = True,
        *,
        normalise: bool = True,
        batch_size: int = 128,
        precision: str = "fp32",
    ) -> torch.Tensor:
        """Embeddings of aligned faces.

        Args:
            images_BHWC: uint8 (B, size, size, 3) RGB, NumPy or torch.
            flip: add the raw embedding of the mirrored image (the protocol's flip-TTA).
            normalise: divide by the norm, so that the dot product of two rows is their cosine; else the raw
                embedding (or the raw sum of the two views).
            batch_size: images per forward pass.
            precision: ``auto`` (see `facerec.device.number_format`), ``fp32``, ``bf16`` or ``fp16``.

        Returns:
            float32 (B, D) on the CPU. A zero embedding stays zero.

        Raises:
            UserError: for images of another type or size.
            NonFiniteError: where `normalise` meets an embedding that is not finite.
        """
        image_BHWC = torch.as_tensor(images_BHWC)
        wanted = (*self.input.shape, 3)
        if image_BHWC.dtype != torch.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[1:] != wanted:
            raise UserError(
                f"images are {image_BHWC.dtype} of shape {tuple(image_BHWC.shape)}; this model takes uint8 "
                f"RGB of shape (B, {', '.join(map(str, wanted))})"
            )
        parts = []
        with self.evaluating():
            for chunk_BHWC in image_BHWC.split(batch_size):
                chunk_BHWC = chunk_BHWC.to(self.device)
                embedding_BD = self.forward(chunk_BHWC, precision)
                if flip:
                    embedding_BD = embedding_BD + self.forward(chunk_BHWC.flip(2), precision)
                parts.append(embedding_BD.cpu())
        embedding_BD = torch.cat(parts)
        return unit_rows(embedding_BD, "embedding") if normalise else embedding_BD

    def forward(self, image_BHWC: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """Raw embeddings, float32 (B, D), of uint8 images on its device; call within `evaluating`."""
        with autocast(self.device, precision):
            embedding_BD: torch.Tensor = self.backbone(self.input.normalise(image_BHWC))
        return embedding_BD.float()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set eval mode without gradients, and each submodule's own mode (frozen or not) afterwards."""
        with in_eval_mode(self.backbone), torch.inference_mode():
            yield


class Speed(NamedTuple):
    """Speed of batches of one size: median seconds for a batch, images per second, peak bytes on CUDA."""

    batch: int
    seconds: float
    images_per_second: float
    peak: int | None


def measure(model: Model, batch: int, *, seconds: float = 1.0, precision: str = "fp32") -> Speed:
    """Time the forward pass of `batch` uint8 images on the model's device: the median after a warm-up.

    Args:
        seconds: to measure for; five passes at least.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast).
    """
    cuda = model.device.type == "cuda"
    image_BHWC = torch.randint(0, 256, (batch, *model.input.shape, 3), dtype=torch.uint8, device=model.device)

    def run() -> float:
        start = time.perf_counter()
        model.forward(image_BHWC, precision).cpu()  # waits for the device
        return time.perf_counter() - start

    with model.evaluating():
        if cuda:
            torch.cuda.reset_peak_memory_stats(model.device)
        run()
        end = time.perf_counter() + seconds
        taken = [run() for _ in range(5)]
        while time.perf_counter() < end:
            taken.append(run())
    median = statistics.median(taken)
    peak = torch.cuda.max_memory_allocated(model.device) if cuda else None
    return Speed(batch, median, batch / median, peak)
