"""resnet50/101/152: the bottleneck ResNet with a face embedding at its end, in face.evoLVe's layout.

Source: He et al. (1512.03385) as torchvision names it (conv1, bn1, layer1–4), followed by the
BN–Dropout–FC–BN of ArcFace (bn_o1, dropout, fc, bn_o2). Its first layers quarter the image, so that 112×112
ends as 4×4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from facerec.backbones.base import (
    Backbone,
    in_full_precision,
    initialise,
    projection,
    register_members,
    require_fraction,
)

EXPANSION = 4


class Bottleneck(nn.Module):
    """1×1, 3×3 (which holds the stride) and 1×1 convolution, each with a batch norm, plus the input."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, width: int, stride: int) -> None:
        super().__init__()
        outgoing = width * EXPANSION
        self.conv1 = nn.Conv2d(incoming, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outgoing, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outgoing)
        self.relu = nn.ReLU(inplace=True)
        projected = stride > 1 or incoming != outgoing
        self.downsample = projection(incoming, outgoing, stride) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out.add_(x if self.downsample is None else self.downsample(x)))


def _layer(incoming: int, width: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, the first of which holds the stride."""
    rest = [Bottleneck(width * EXPANSION, width, 1) for _ in range(count - 1)]
    return nn.Sequential(Bottleneck(incoming, width, stride), *rest)


class ResNet(Backbone):
    """The network behind every name of this layout.

    Args:
        dropout: fraction of the last feature map set to 0 in training, 0 … <1.
        zero_init_residual: start the last batch norm of every block at 0 (1706.02677); on in the published
            code.
        input_size: pixels, multiples of 16; 112 is published.
    """

    stages: ClassVar[Sequence[int]]

    def __init__(
        self,
        embedding_size: int = 512,
        dropout: float = 0.5,
        zero_init_residual: bool = True,
        input_size: int | list[int] = 112,
    ) -> None:
        super().__init__(embedding_size, input_size)
        require_fraction("dropout", dropout)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        first, second, third, fourth = self.stages
        self.layer1 = _layer(64, 64, first, stride=1)
        self.layer2 = _layer(256, 128, second, stride=2)
        self.layer3 = _layer(512, 256, third, stride=2)
        self.layer4 = _layer(1024, 512, fourth, stride=2)
        self.bn_o1 = nn.BatchNorm2d(2048)
        self.dropout = nn.Dropout(dropout)
        rows, columns = (-(-side // 32) for side in self.input_size)
        self.fc = nn.Linear(2048 * rows * columns, embedding_size)
        self.bn_o2 = nn.BatchNorm1d(embedding_size)
        initialise(self, nn.init.kaiming_normal_, nn.Conv2d, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, Bottleneck) and zero_init_residual:
                nn.init.zeros_(module.bn3.weight)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(image_BCHW))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn_o1(x)).flatten(1)
        return in_full_precision(x, self.fc, self.bn_o2)


register_members(ResNet, {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)})
