"""MobileFaceNet of the paper (1804.07573, Table 1), InsightFace's ``mbf``, twice as wide, and one with ReLU6.

The entry names are those of TreB1eN/InsightFace_Pytorch and face.evoLVe (conv1, conv2_dw, conv_23, conv_3,
…, linear, bn), for ``mbf`` those of arcface_torch, below ``layers.N``, ``conv_sep`` and ``features``, and for
``mobilefacenet_relu`` those of foamliu/MobileFaceNet (conv1, dw_conv, conv2, gdconv, conv3, bn, features).
"""

from __future__ import annotations

from collections import OrderedDict
from types import MappingProxyType

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


# With ReLU6 ------------------------------------------------------------------------------------------------

# Width inside over the channels before, channels, blocks, stride of the first.
_RELU_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _relu6_convolution(
    incoming: int, outgoing: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layer = nn.Conv2d(incoming, outgoing, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outgoing), nn.ReLU6(inplace=True))


class Separable(nn.Module):
    """3×3 depthwise convolution and 1×1 convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.depthwise(x)).relu_()
        return self.bn2(self.pointwise(x)).relu_()


class InvertedResidual(nn.Module):
    """Expand, 3×3 depthwise, project back; plus the input where the shape stays (1801.04381)."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, outgoing: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = incoming * expansion
        self.residual = stride == 1 and incoming == outgoing
        self.conv = nn.Sequential(
            _relu6_convolution(incoming, width, 1),
            _relu6_convolution(width, width, 3, stride, width),
            nn.Conv2d(width, outgoing, 1, bias=False),
            nn.BatchNorm2d(outgoing),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out.add_(x) if self.residual else out


@BACKBONES.register("mobilefacenet_relu")
class MobileFaceNetReLU(Backbone):
    """MobileFaceNet with ReLU6; its published weights are of D = 128 and want ImageNet's mean and deviation.

    Args:
        embedding_size: D.
        input_size: pixels, multiples of 16; 112 is published.
    """

    preprocessing = MappingProxyType({"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]})

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        height, width = (side // 16 for side in self.input_size)
        self.conv1 = _relu6_convolution(3, 64, 3, 2)
        self.dw_conv = Separable(64)
        self.conv2 = _relu6_convolution(128, 512, 1)
        depthwise = nn.Conv2d(512, 512, (height, width), groups=512, bias=False)
        self.gdconv = nn.Sequential(OrderedDict({"depthwise": depthwise, "bn": nn.BatchNorm2d(512)}))
        self.conv3 = nn.Conv2d(512, embedding_size, 1)
        self.bn = nn.BatchNorm2d(embedding_size)
        blocks = []
        incoming = 64
        for expansion, channels, count, stride in _RELU_STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(incoming, channels, 1 if i else stride, expansion))
                incoming = channels
        self.features = nn.Sequential(*blocks)
        initialise(self, nn.init.kaiming_normal_, mode="fan_out")

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = self.conv2(self.features(self.dw_conv(self.conv1(image_BCHW))))
        return in_full_precision(self.gdconv(x), self.conv3, self.bn).flatten(1)
