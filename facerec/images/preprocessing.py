"""Preprocessing of images for a backbone: channel order, mean, std and size; part of every checkpoint.

Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from facerec.errors import require
from facerec.images import buffers

Numbers = float | list[float]


@dataclass(frozen=True)
class Preprocessing:
    """The images a backbone expects; part of every checkpoint.

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

    def of_floats(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """As `normalise`, of float images (B, 3, height, width) whose channels are red, green, blue."""
        if self.channels == "bgr":
            image_BCHW = image_BCHW.flip(1)
        return (image_BCHW - self._constant(self.mean, image_BCHW)) / self._constant(self.std, image_BCHW)

    def followed_by(self, inner: Preprocessing) -> Preprocessing:
        """Return the preprocessing that does this one's work and then that of `inner`, at this one's size."""
        turned = inner.channels == "bgr"

        def three(value: Numbers, turn: bool = False) -> list[float]:
            numbers = [value] * 3 if isinstance(value, float) else value
            return numbers[::-1] if turn else numbers

        own = zip(three(self.mean, turned), three(self.std, turned), strict=True)
        mean, std = [], []
        for (m, s), a, b in zip(own, three(inner.mean), three(inner.std), strict=True):
            mean.append(m + a * s)
            std.append(s * b)
        channels: Literal["rgb", "bgr"] = "rgb" if (self.channels == "bgr") == turned else "bgr"
        return Preprocessing(_short(mean), _short(std), channels, self.size)

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


def _short(numbers: list[float]) -> Numbers:
    """One number where all are equal."""
    return numbers[0] if len(set(numbers)) == 1 else numbers
