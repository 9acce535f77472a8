"""MobileFaceNet of the paper (1804.07573, Table 1), and InsightFace's ``mbf``, twice as wide.

The entry names are those of TreB1eN/InsightFace_Pytorch and face.evoLVe (conv1, conv2_dw, conv_23, conv_3,
…, linear, bn), and for ``mbf`` those of arcface_torch, below ``layers.N``, ``conv_sep`` and ``features``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, in_full_precision, initialise
from facerec.backbones.prelu import PReLU

Size = int | tuple[int, int]


class Chain(nn.Sequential):
    """Modules one after the other, under the published names; plus the input, where it is a residual."""

    residual = False

    def __init__(self, parts: dict[str, nn.Module], numbered: bool) -> None:
        named = {"layers": nn.Sequential(*parts.values())} if numbered else parts
        super().__init__(OrderedDict(named))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.add_(x) if self.residual else out


class Bottleneck(Chain):
    """Expand to `width` channels, 3×3 depthwise, project back; a residual where the stride is 1."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, outgoing: int, width: int, stride: int, numbered: bool) -> None:
        parts: dict[str, nn.Module] = {
            "conv": convolution(incoming, width, numbered=numbered),
            "conv_dw": convolution(width, width, 3, stride, width, numbered=numbered),
            "project": convolution(width, outgoing, activation=False, numbered=numbered),
        }
        super().__init__(parts, numbered)
        self.residual = stride == 1


def convolution(
    incoming: int,
    outgoing: int,
    kernel: Size = 1,
    stride: int = 1,
    groups: int = 1,
    *,
    activation: bool = True,
    numbered: bool = False,
) -> Chain:
    """Return convolution and batch norm, and PReLU with `activation`."""
    padding = 1 if kernel == 3 else 0  # kernels other than 1 and 3 cover the last feature map
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(incoming, outgoing, kernel, stride, padding, groups=groups, bias=False),
        "bn": nn.BatchNorm2d(outgoing),
    }
    if activation:
        parts["prelu"] = PReLU(outgoing)
    return Chain(parts, numbered)


def bottlenecks(channels: int, width: int, count: int, numbered: bool = False) -> nn.Sequential:
    """Return `count` residual bottlenecks of equal width."""
    parts = (Bottleneck(channels, channels, width, 1, numbered) for _ in range(count))
    return nn.Sequential(OrderedDict({"layers" if numbered else "model": nn.Sequential(*parts)}))


@BACKBONES.register("mobilefacenet")
class MobileFaceNet(Backbone):
    """MobileFaceNet; weights start as torch initialises them, as in the published code.

    Args:
        embedding_size: D; 128 in the paper, 512 in most published weights.
        input_size: pixels, multiples of 16; the global depthwise convolution covers what is left of them
            (7×7 for 112, 7×6 for [112, 96]).
    """

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        height, width = self.input_size
        self.conv1 = convolution(3, 64, 3, 2)
        self.conv2_dw = convolution(64, 64, 3, groups=64)
        self.conv_23 = Bottleneck(64, 64, 128, 2, numbered=False)
        self.conv_3 = bottlenecks(64, 128, 4)
        self.conv_34 = Bottleneck(64, 128, 256, 2, numbered=False)
        self.conv_4 = bottlenecks(128, 256, 6)
        self.conv_45 = Bottleneck(128, 128, 512, 2, numbered=False)
        self.conv_5 = bottlenecks(128, 256, 2)
        self.conv_6_sep = convolution(128, 512)
        self.conv_6_dw = convolution(512, 512, (height // 16, width // 16), groups=512, activation=False)
        self.linear = nn.Linear(512, embedding_size, bias=False)
        self.bn = nn.BatchNorm1d(embedding_size)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        *layers, linear, norm = self.children()
        x = image_BCHW
        for layer in layers:
            x = layer(x)
        return in_full_precision(x.flatten(1), linear, norm)


@BACKBONES.register("mbf")
class MBF(Backbone):
    """InsightFace's MobileFaceNet of 0.45 GFLOP, published for 112×112."""

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        height, width = self.input_size
        self.layers = nn.Sequential(
            convolution(3, 128, 3, 2, numbered=True),
            # In 64 groups of two channels: the published code kept the paper's number at twice the width.
            convolution(128, 128, 3, groups=64, numbered=True),
            Bottleneck(128, 128, 128, 2, numbered=True),
            bottlenecks(128, 128, 4, numbered=True),
            Bottleneck(128, 256, 256, 2, numbered=True),
            bottlenecks(256, 256, 6, numbered=True),
            Bottleneck(256, 256, 512, 2, numbered=True),
            bottlenecks(256, 256, 2, numbered=True),
        )
        self.conv_sep = convolution(256, 512, numbered=True)
        parts: dict[str, nn.Module] = {
            "conv": convolution(
                512, 512, (height // 16, width // 16), groups=512, activation=False, numbered=True
            ),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(512, embedding_size, bias=False),
            "bn": nn.BatchNorm1d(embedding_size),
        }
        self.features = Chain(parts, numbered=True)
        initialise(self, nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        convolution, flatten, linear, norm = self.features.get_submodule("layers").children()
        x = flatten(convolution(self.conv_sep(self.layers(image_BCHW))))
        return in_full_precision(x, linear, norm)
