"""iresnet18 … 200, the improved residual networks in the layout of InsightFace's arcface_torch.

Source: ArcFace (1801.07698) and the published code (conv1, bn1, prelu, layer1–4, bn2, fc, features); its
units have one batch norm more than those of face.evoLVe's ``ir_*``, hence the other parameter counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from facerec.backbones.base import (
    Backbone,
    in_full_precision,
    initialise,
    projection,
    register_members,
    require_fraction,
)
from facerec.backbones.prelu import PReLU


class Block(nn.Module):
    """norm, 3×3 convolution, norm, PReLU, 3×3 convolution (which holds the stride), norm, plus the input."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(incoming)
        self.conv1 = nn.Conv2d(incoming, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        projected = stride > 1 or incoming != channels
        self.downsample = projection(incoming, channels, stride) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out.add_(x if self.downsample is None else self.downsample(x))


def _layer(incoming: int, channels: int, count: int) -> nn.Sequential:
    """`count` blocks, the first of which halves height and width."""
    rest = [Block(channels, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(Block(incoming, channels, 2), *rest)


class IResNet(Backbone):
    """The network behind every name of this layout.

    Args:
        dropout: fraction of the last feature map set to 0 in training, 0 … <1.
        zero_init_residual: start the second batch norm of every block at 0, so that each block passes
            its input on at first (the published option, also off there).
        input_size: pixels, multiples of 16; 112 is published.
        variant: ``magface`` as MagFace (2103.06627) trains it: the embedding's scale learnt, whole channels
            dropped, batch norm with ε 2e-5 and momentum 0.9, Kaiming's start; for BGR images from 0 to 1.
            ``opensphere``: the embedding's scale is learnt, from 0.1.
    """

    stages: ClassVar[Sequence[int]]

    def __init__(
        self,
        embedding_size: int = 512,
        dropout: float = 0.0,
        zero_init_residual: bool = False,
        input_size: int | list[int] = 112,
        variant: Literal["insightface", "magface", "opensphere"] = "insightface",
    ) -> None:
        super().__init__(embedding_size, input_size)
        require_fraction("dropout", dropout)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = PReLU(64)
        first, second, third, fourth = self.stages
        self.layer1 = _layer(64, 64, first)
        self.layer2 = _layer(64, 128, second)
        self.layer3 = _layer(128, 256, third)
        self.layer4 = _layer(256, 512, fourth)
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout: nn.Module = nn.Dropout(dropout)
        height, width = (side // 16 for side in self.input_size)
        self.fc = nn.Linear(512 * height * width, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        # The heads normalise the embedding; the published code therefore fixes this scale at 1.
        self.features.weight.requires_grad = False
        initialise(self, nn.init.normal_, nn.Conv2d, std=0.1)
        for module in self.modules():
            if isinstance(module, Block) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)
        if variant == "opensphere":
            self.features.weight.requires_grad = True
            nn.init.constant_(self.features.weight, 0.1)
        if variant == "magface":
            self.dropout = nn.Dropout2d(dropout)
            self.features.weight.requires_grad = True
            initialise(self, nn.init.kaiming_normal_, nn.Conv2d, mode="fan_out", nonlinearity="relu")
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eps, module.momentum = 2e-5, 0.9

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(image_BCHW)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn2(x)).flatten(1)
        return in_full_precision(x, self.fc, self.features)


register_members(
    IResNet,
    {
        "iresnet18": (2, 2, 2, 2),
        "iresnet34": (3, 4, 6, 3),
        "iresnet50": (3, 4, 14, 3),
        "iresnet100": (3, 13, 30, 3),
        "iresnet200": (6, 26, 60, 6),
    },
)
