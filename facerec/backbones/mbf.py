"""mbf: InsightFace's MobileFaceNet of 0.45 GFLOP, twice as wide as the paper's (arcface_torch, ``get_mbf``).

All entries lie below ``layers.N``, ``conv_sep`` and ``features``, as in the published code.
"""

from __future__ import annotations

from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, in_full_precision
from facerec.backbones.prelu import PReLU


class LinearConv(nn.Module):
    """Convolution and batch norm, as entries 0 and 1 of ``layers``."""

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = 1 if kernel == 3 else 0
        convolution = nn.Conv2d(incoming, outgoing, kernel, stride, padding, groups=groups, bias=False)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(outgoing))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Conv(LinearConv):
    """Convolution, batch norm and PReLU."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(incoming, outgoing, kernel, stride, groups)
        self.layers.append(PReLU(outgoing))


class Bottleneck(nn.Module):
    """Expand to `width` channels, 3×3 depthwise, project back; a residual where the stride is 1."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, outgoing: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv(incoming, width), Conv(width, width, 3, stride, groups=width), LinearConv(width, outgoing)
        )
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return out.add_(x) if self.residual else out


class Bottlenecks(nn.Module):
    """`count` residual bottlenecks of equal width."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Bottleneck(channels, channels, width, 1) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class GlobalEmbedding(nn.Module):
    """A depthwise convolution over the whole feature map, then the embedding and its batch norm."""

    def __init__(self, size: tuple[int, int], embedding_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            LinearConv(512, 512, size, groups=512),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolution, flatten, linear, norm = self.layers
        return in_full_precision(flatten(convolution(x)), linear, norm)


@BACKBONES.register("mbf")
class MBF(Backbone):
    """InsightFace's MobileFaceNet.

    Args:
        embedding_size: D.
        input_size: pixels, multiples of 16; 112 is published.
    """

    def __init__(self, embedding_size: int = 512, input_size: int | list[int] = 112) -> None:
        super().__init__(embedding_size, input_size)
        height, width = self.input_size
        self.layers = nn.ModuleList(
            [
                Conv(3, 128, 3, 2),
                # In 64 groups of two channels: the published code kept the paper's number at twice the width.
                Conv(128, 128, 3, groups=64),
                Bottleneck(128, 128, 128, 2),
                Bottlenecks(128, 128, 4),
                Bottleneck(128, 256, 256, 2),
                Bottlenecks(256, 256, 6),
                Bottleneck(256, 256, 512, 2),
                Bottlenecks(256, 256, 2),
            ]
        )
        self.conv_sep = Conv(256, 512)
        self.features = GlobalEmbedding((height // 16, width // 16), embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = image_BCHW
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))
