"""sphere20/36/64, the networks of SphereFace (1704.08063, Table 2): PReLU, biases, no batch norm.

The entry names are those of the paper's Caffe model and of sphereface_pytorch (conv1_1, relu1_1, …, fc5). The
paper's images are 112 high and 96 wide: ``input_size: [112, 96]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from facerec.backbones.base import Backbone, in_full_precision, register_members
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


register_members(SphereNet, {"sphere20": (1, 2, 4, 1), "sphere36": (2, 4, 8, 2), "sphere64": (3, 8, 16, 3)})
