"""sfnet20 … 64, the networks of SphereFace as OpenSphere builds them: ReLU; in ``_bn`` batch norm.

The entry names are those of OpenSphere (layer1 … 4, fc, features). Source: 1704.08063, Table 2, and the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from facerec.backbones.base import Backbone, in_full_precision, initialise, register_members


class First(nn.Module):
    """3×3 convolution of stride 2, batch norm in networks that have it, ReLU."""

    def __init__(self, incoming: int, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, channels, 3, 2, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv1(x))
        return out.relu_()


class Unit(nn.Module):
    """Two 3×3 convolutions with ReLU between them, plus the input, and ReLU."""

    recomputable = ("forward",)

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.bn2 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return out.add_(x).relu_()


class SFNet(Backbone):
    """The network behind every name of this layout.

    Args:
        embedding_size: D.
        input_size: pixels, multiples of 16; 112 is published.
    """

    stages: ClassVar[Sequence[int]]  # units of each of the four
    batch_norm: ClassVar[bool] = False

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        self.features = nn.BatchNorm1d(embedding_size) if self.batch_norm else nn.Identity()
        incoming = 3
        for stage, (channels, units) in enumerate(zip((64, 128, 256, 512), self.stages, strict=True), 1):
            rest = [Unit(channels, self.batch_norm) for _ in range(units)]
            self.add_module(f"layer{stage}", nn.Sequential(First(incoming, channels, self.batch_norm), *rest))
            incoming = channels
        height, width = (side // 16 for side in self.input_size)
        self.fc = nn.Linear(512 * height * width, embedding_size)
        initialise(self, nn.init.kaiming_normal_, nn.Conv2d, mode="fan_out", nonlinearity="relu")

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = image_BCHW
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return in_full_precision(x.flatten(1), self.fc, self.features)


class SFNetBN(SFNet):
    """`SFNet` with batch norm after each convolution and of the embedding."""

    batch_norm = True


_STAGES = {"20": (1, 2, 4, 1), "36": (2, 4, 8, 2), "64": (3, 8, 16, 3)}
register_members(SFNet, {f"sfnet{size}": stages for size, stages in _STAGES.items()})
register_members(SFNetBN, {f"sfnet{size}_bn": stages for size, stages in _STAGES.items()})
