"""Networks without weights, for tests: one looks at pixels, one knows people by colours; images of such."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


class Pixels(nn.Module):
    """A network that looks at a few pixels of small images: the embedding is known by hand."""

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        step = image_BCHW.shape[2] // 4
        return image_BCHW[:, :, ::step, 1::step].flatten(1)


class Colours(nn.Module):
    """A network that knows people by the colours of 8×8 fields of 16×16 pixels."""

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        small_BD = nn.functional.avg_pool2d(image_BCHW, 2).flatten(1)
        return small_BD - small_BD.mean(1, keepdim=True)


def write_colours(path: Path) -> None:
    """Write the network as a TorchScript file."""
    torch.jit.trace(Colours(), torch.zeros(2, 3, 16, 16)).save(str(path))


def photograph(person: int, number: int, kind: str = "PNG") -> bytes:
    """An encoded image of a person: its fields, in other lights from image to image."""
    fields, light = (
        np.random.default_rng(seed).uniform(0, 255, (8, 8, 3)) for seed in ([person], [person, number, 1])
    )
    pixels = np.kron(0.65 * fields + 0.35 * light, np.ones((4, 4, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
