"""MobileFaceNet of the paper (1804.07573, Table 1), about a million parameters.

The entry names are those of TreB1eN/InsightFace_Pytorch and face.evoLVe (conv1, conv2_dw, conv_23, conv_3, …,
linear, bn). The paper's embedding has 128 numbers; most published weights have 512. InsightFace's wider
network of the same kind is ``mbf``.
"""

from __future__ import annotations

from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, in_full_precision
from facerec.backbones.prelu import PReLU


class LinearConv(nn.Module):
    """Convolution and batch norm."""

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        # Only the last, global convolution has a kernel other than 1 or 3, and it has no border.
        padding = 1 if kernel == 3 else 0
        self.conv = nn.Conv2d(incoming, outgoing, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outgoing)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Conv(LinearConv):
    """Convolution, batch norm and PReLU."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(incoming, outgoing, kernel, stride, groups)
        self.prelu = PReLU(outgoing)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Expand to `width` channels, 3×3 depthwise, project back; a residual where the stride is 1."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, outgoing: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv(incoming, width)
        self.conv_dw = Conv(width, width, 3, stride, groups=width)
        self.project = LinearConv(width, outgoing)
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.conv_dw(self.conv(x)))
        return out.add_(x) if self.residual else out


class Bottlenecks(nn.Module):
    """`count` residual bottlenecks of equal width."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(Bottleneck(channels, channels, width, 1) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@BACKBONES.register("mobilefacenet")
class MobileFaceNet(Backbone):
    """MobileFaceNet; weights start as torch initialises them, as in the published code.

    Args:
        embedding_size: D; 128 in the paper.
        input_size: pixels, multiples of 16; the global depthwise convolution covers what is left of them
            (7×7 for 112, 7×6 for [112, 96]).
    """

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        height, width = self.input_size
        self.conv1 = Conv(3, 64, 3, 2)
        self.conv2_dw = Conv(64, 64, 3, groups=64)
        self.conv_23 = Bottleneck(64, 64, 128, 2)
        self.conv_3 = Bottlenecks(64, 128, 4)
        self.conv_34 = Bottleneck(64, 128, 256, 2)
        self.conv_4 = Bottlenecks(128, 256, 6)
        self.conv_45 = Bottleneck(128, 128, 512, 2)
        self.conv_5 = Bottlenecks(128, 256, 2)
        self.conv_6_sep = Conv(128, 512)
        self.conv_6_dw = LinearConv(512, 512, (height // 16, width // 16), groups=512)
        self.linear = nn.Linear(512, embedding_size, bias=False)
        self.bn = nn.BatchNorm1d(embedding_size)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = self.conv2_dw(self.conv1(image_BCHW))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        x = self.conv_6_dw(self.conv_6_sep(x))
        return in_full_precision(x.flatten(1), self.linear, self.bn)
