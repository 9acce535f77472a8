"""MobileFaceNet as foamliu/MobileFaceNet lays it out: ReLU6 for PReLU, a depthwise-separable second layer.

The entry names are those of the published code (conv1, dw_conv, conv2, gdconv, conv3, bn, features); channels
and strides are those of `mobilefacenet`.
"""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, in_full_precision, initialise

# Width inside over the channels before, channels, blocks, stride of the first.
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _convolution(
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
            _convolution(incoming, width, 1),
            _convolution(width, width, 3, stride, width),
            nn.Conv2d(width, outgoing, 1, bias=False),
            nn.BatchNorm2d(outgoing),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out.add_(x) if self.residual else out


class GlobalDepthwise(nn.Module):
    """A depthwise convolution over the whole feature map, with batch norm."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, size, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.depthwise(x))
        return out


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
        self.conv1 = _convolution(3, 64, 3, 2)
        self.dw_conv = Separable(64)
        self.conv2 = _convolution(128, 512, 1)
        self.gdconv = GlobalDepthwise(512, (height, width))
        self.conv3 = nn.Conv2d(512, embedding_size, 1)
        self.bn = nn.BatchNorm2d(embedding_size)
        blocks = []
        incoming = 64
        for expansion, channels, count, stride in _STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(incoming, channels, 1 if i else stride, expansion))
                incoming = channels
        self.features = nn.Sequential(*blocks)
        initialise(self, nn.init.kaiming_normal_, mode="fan_out")

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = self.conv2(self.features(self.dw_conv(self.conv1(image_BCHW))))
        return in_full_precision(self.gdconv(x), self.conv3, self.bn).flatten(1)
