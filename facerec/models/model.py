"""A backbone together with the preprocessing it was trained with: what a checkpoint holds, what evaluation
uses.

Shape suffixes: B batch, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facerec.device import autocast
from facerec.errors import UserError, require
from facerec.images import buffers

Numbers = float | list[float]


@dataclass(frozen=True)
class Input:
    """What a backbone expects of an image; part of every checkpoint.

    Args:
        mean, std: (x − mean) / std of the pixel values 0 … 255: one number or one for each channel, in the
            order of `channels`.
        channels: ``rgb`` or ``bgr``, the order in which the backbone wants the channels (images come as
            RGB).
        size: height and width in pixels, 1 … 4096, or [height, width]; images of another size are resized
            by the short side and cut from the middle.

    Raises:
        ConfigError: for a value out of range.
    """

    mean: Numbers = 127.5
    std: Numbers = 127.5
    channels: Literal["rgb", "bgr"] = "rgb"
    size: int | list[int] = 112

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            value = getattr(self, key)
            numbers = [value] if isinstance(value, int | float) else list(value)
            require(len(numbers) in (1, 3), f"input.{key}", value, "must be one number or three")
            # Beyond these a network sees one constant, or numbers that half precision does not have.
            low, high = (-1e4, 1e4) if key == "mean" else (0.01, 1e5)
            good = all(low <= number <= high for number in numbers)
            require(
                good, f"input.{key}", value, f"must be from {low:g} to {high:g}, for pixels from 0 to 255"
            )
            object.__setattr__(self, key, float(numbers[0]) if len(numbers) == 1 else [*map(float, numbers)])
        require(self.channels in ("rgb", "bgr"), "input.channels", self.channels, "must be rgb or bgr")
        good = len(self.shape) == 2 and all(1 <= side <= 4096 for side in self.shape)
        require(good, "input.size", self.size, "must be 1 to 4096 pixels, or [height, width]")

    def normalise(self, image_BHWC: torch.Tensor, out_BHWC: torch.Tensor | None = None) -> torch.Tensor:
        """Images as the backbone wants them, on the device where they are.

        Args:
            image_BHWC: uint8 (B, size, size, 3), RGB.
            out_BHWC: float32 memory of that shape to be used; None: new memory.

        Returns:
            float32 (B, 3, size, size), channels-last in memory; within 1.2e-7 of (x − mean) / std where that
            is in [−1, 1].
        """
        if self.channels == "bgr":
            image_BHWC = image_BHWC.flip(-1)
        if out_BHWC is None:
            out_BHWC = buffers.empty(image_BHWC.shape, torch.float32, image_BHWC.device)
        image_BCHW = out_BHWC.copy_(image_BHWC).permute(0, 3, 1, 2)  # channels-last: memory keeps its order
        if isinstance(self.mean, float) and isinstance(self.std, float):  # as x/std − mean/std, in one pass
            shift = torch.tensor(-self.mean / self.std)
            return torch.add(shift, image_BCHW, alpha=1 / self.std, out=image_BCHW)
        return image_BCHW.sub_(self._constant(self.mean, image_BCHW)).div_(
            self._constant(self.std, image_BCHW)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint and results.json keep them."""
        return asdict(self)

    def __str__(self) -> str:
        size = "×".join(map(str, self.shape))
        return f"{size} {self.channels}, (x − {self.mean}) / {self.std}"

    @staticmethod
    def _constant(value: Numbers, like: torch.Tensor) -> torch.Tensor | float:
        if isinstance(value, float):
            return value
        return torch.tensor(value, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


class Cache(Protocol):
    """What keeps embeddings between runs: see `facerec.evaluation.embedding_cache`."""

    def path(self, images: Sequence[Any], name: str, **how: Any) -> Path: ...
    def load(self, path: Path, count: int, views: int) -> npt.NDArray[np.float32] | None: ...
    def store(self, path: Path, embedding_VPD: npt.NDArray[np.float32]) -> None: ...


class Model:
    """A backbone and its preprocessing.

    Attributes:
        backbone: module from (B, 3, size, size) float to (B, D) raw embeddings.
        input: the preprocessing.
        step, epoch: how far it was trained, where known.
        path: the file it came from, where it came from one.
        identities: names of the people it was trained on, where they are known.
        config: the settings it was trained with, as its file says; of an exported one the backbone's alone;
            empty where the file says nothing.
        knows_input: whether the preprocessing came with the model; else it was taken for granted or given.
        cache: where its embeddings are kept between runs; None: nowhere.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input: Input | None = None,
        *,
        step: int | None = None,
        epoch: int | None = None,
        path: Path | None = None,
        identities: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        knows_input: bool = True,
    ) -> None:
        self.backbone = backbone
        self.input = input or Input()
        self.step = step
        self.epoch = epoch
        self.path = path
        self.identities = identities
        self.config = dict(config or {})
        self.knows_input = knows_input
        self.cache: Cache | None = None

    @property
    def device(self) -> torch.device:
        """Where the backbone's parameters are."""
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
            batch_size: images that go through the backbone at once.
            precision: ``fp32``, ``bf16`` or ``fp16``.

        Returns:
            float32 (B, D) on the CPU. A zero embedding stays zero.

        Raises:
            UserError: for images of another type or size.
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
        return nn.functional.normalize(embedding_BD) if normalise else embedding_BD

    def forward(self, image_BHWC: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
        """Raw embeddings, float32 (B, D), of uint8 images on the backbone's device; call within
        `evaluating`."""
        with autocast(self.device, precision):
            embedding_BD: torch.Tensor = self.backbone(self.input.normalise(image_BHWC))
        return embedding_BD.float()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradients; every submodule's own mode is put back afterwards (some may be
        frozen)."""
        modes = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module, training in modes:
                module.training = training
