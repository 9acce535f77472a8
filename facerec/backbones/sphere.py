"""The networks of SphereFace (1704.08063, Table 2), sphere20/36/64, and OpenSphere's of it, sfnet20 … 64.

``sphere`` has PReLU, biases and no batch norm; its entry names are those of the paper's Caffe model and of
sphereface_pytorch (conv1_1, relu1_1, …, fc5). The paper's images are 112 high and 96 wide. ``sfnet`` has
ReLU, and in ``_bn`` batch norm; its entry names are those of OpenSphere (layer1 … 4, fc, features).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from facerec.backbones.base import Backbone, in_full_precision, initialise, register_members
from facerec.backbones.prelu import PReLU


class SphereNet(Backbone):
    """The network behind every name of this layout.

    Each stage is a convolution of stride 2 with PReLU, then residual units of two convolutions with PReLU.

    Args:
        input_size: pixels, multiples of 16.
    """

    stages: ClassVar[Sequence[int]]  # residual units of each of the four
    recomputable = ("_unit",)
    foreign = ("fc6.",)  # the A-Softmax layer of sphereface_pytorch
    preprocessing = MappingProxyType({"channels": "bgr", "std": 128.0})  # which reads images with OpenCV

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        incoming = 3
        for stage, (channels, units) in enumerate(zip((64, 128, 256, 512), self.stages, strict=True), 1):
            for layer in range(1, 2 * units + 2):
                convolution = nn.Conv2d(incoming, channels, 3, 2 if layer == 1 else 1, padding=1)
                # Without batch norm the start decides: residual branches begin near 0 (Caffe's gaussian of
                # 0.01), the rest at Caffe's xavier, uniform with variance 1 / fan_in.
                if layer == 1:
                    _xavier(convolution.weight)
                else:
                    nn.init.normal_(convolution.weight, std=0.01)
                assert convolution.bias is not None
                nn.init.zeros_(convolution.bias)
                self.add_module(f"conv{stage}_{layer}", convolution)
                self.add_module(f"relu{stage}_{layer}", PReLU(channels))
                incoming = channels
        height, width = (side // 16 for side in self.input_size)
        self.fc5 = nn.Linear(512 * height * width, embedding_size)
        _xavier(self.fc5.weight)
        nn.init.zeros_(self.fc5.bias)

    def _layer(self, x: Tensor, stage: int, layer: int) -> Tensor:
        return getattr(self, f"relu{stage}_{layer}")(getattr(self, f"conv{stage}_{layer}")(x))

    def _unit(self, x: Tensor, stage: int, layer: int) -> Tensor:
        return x + self._layer(self._layer(x, stage, layer), stage, layer + 1)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = image_BCHW
        for stage, units in enumerate(self.stages, start=1):
            x = self._layer(x, stage, 1)
            for unit in range(units):
                x = self._unit(x, stage, 2 * unit + 2)
        return in_full_precision(x.flatten(1), self.fc5)


def _xavier(weight: Tensor) -> None:
    bound = math.sqrt(3 / weight[0].numel())
    nn.init.uniform_(weight, -bound, bound)


# OpenSphere's ----------------------------------------------------------------------------------------------


def _convolution(
    incoming: int, channels: int, stride: int, batch_norm: bool
) -> tuple[nn.Conv2d, nn.BatchNorm2d | nn.Identity]:
    """A 3×3 convolution, and what follows it: batch norm, or nothing where it has a bias."""
    convolution = nn.Conv2d(incoming, channels, 3, stride, padding=1, bias=not batch_norm)
    return convolution, nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


class Unit(nn.Module):
    """Two 3×3 convolutions with ReLU between them, plus the input, and ReLU."""

    recomputable = ("forward",)

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, channels, 1, batch_norm)
        self.conv2, self.bn2 = _convolution(channels, channels, 1, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return out.add_(x).relu_()


class SFNet(Backbone):
    """The network behind the names of OpenSphere's layout.

    Each stage is a convolution of stride 2 with ReLU, then residual units of two convolutions.

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
            convolution, norm = _convolution(incoming, channels, 2, self.batch_norm)
            parts = {"conv1": convolution, "bn1": norm, "relu": nn.ReLU(inplace=True)}
            rest = [Unit(channels, self.batch_norm) for _ in range(units)]
            self.add_module(f"layer{stage}", nn.Sequential(nn.Sequential(OrderedDict(parts)), *rest))
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


# Residual units of each of the four stages.
_STAGES = {"20": (1, 2, 4, 1), "36": (2, 4, 8, 2), "64": (3, 8, 16, 3)}
register_members(SphereNet, {f"sphere{size}": stages for size, stages in _STAGES.items()})
register_members(SFNet, {f"sfnet{size}": stages for size, stages in _STAGES.items()})
register_members(SFNetBN, {f"sfnet{size}_bn": stages for size, stages in _STAGES.items()})
