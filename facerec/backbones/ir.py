"""IR and IR-SE as face.evoLVe lays them out (input_layer, body, output_layer), and AdaFace's IR.

Source: ArcFace (1801.07698), section 3.2, and AdaFace (2204.00964); the entries of the state dict are named
as in the published models. "101" has 100 layers by the count that gives the others theirs; its name is the
published one. AdaFace's networks return the unit embedding and its length; here it is raw as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
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

# Units of each of the four stages.
STAGES = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 14, 3),
    "101": (3, 13, 30, 3),
    "152": (3, 8, 36, 3),
}


class SqueezeExcite(nn.Module):
    """Channel weights from the mean of each channel (1709.01507), reduction 16."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Unit(nn.Module):
    """norm, 3×3 convolution, PReLU, 3×3 convolution, norm, added to the (projected or subsampled) input."""

    recomputable = ("forward",)

    def __init__(self, incoming: int, channels: int, stride: int, squeeze: bool, inner_norm: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if incoming != channels:
            self.shortcut_layer = projection(incoming, channels, stride)
        else:
            self.shortcut_layer = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        layers = [nn.BatchNorm2d(incoming), nn.Conv2d(incoming, channels, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(channels)] if inner_norm else []
        layers += [PReLU(channels), nn.Conv2d(channels, channels, 3, stride, 1, bias=False)]
        layers += [nn.BatchNorm2d(channels)]
        layers += [SqueezeExcite(channels)] if squeeze else []
        self.res_layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x).add_(self.shortcut_layer(x))


class IRNet(Backbone):
    """The network behind every name of this layout.

    Args:
        dropout: fraction of the last feature map set to 0 in training, 0 … <1.
        input_size: pixels, multiples of 16; 112 and 224 are published.
        affine: the batch norm of the embedding has weight and bias, as face.evoLVe's and SFace's; those of
            CurricularFace and AdaFace have not.
        init: start of convolutions and linear layers: ``xavier`` (uniform, face.evoLVe), ``kaiming`` (normal
            of deviation √(2/outgoing connections), CurricularFace and AdaFace), or ``sface`` (normal of twice
            that deviation, PReLU slopes 1).

    Attributes:
        stages: units of each of the four stages.
        squeeze: squeeze-and-excitation in every unit.
        inner_norm: a batch norm between the first convolution of a unit and its PReLU.
    """

    stages: ClassVar[Sequence[int]]
    squeeze: ClassVar[bool] = False
    inner_norm: ClassVar[bool] = False

    def __init__(
        self,
        embedding_size: int = 512,
        dropout: float = 0.5,
        input_size: int | list[int] = 112,
        affine: bool = True,
        init: Literal["xavier", "kaiming", "sface"] = "xavier",
    ) -> None:
        super().__init__(embedding_size, input_size)
        require_fraction("dropout", dropout)
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), PReLU(64))
        height, width = (side // 16 for side in self.input_size)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(512 * height * width, embedding_size),
            nn.BatchNorm1d(embedding_size, affine=affine),
        )
        units: list[nn.Module] = []
        incoming = 64
        for channels, count in zip((64, 128, 256, 512), self.stages, strict=True):
            for i in range(count):
                units.append(Unit(incoming, channels, 1 if i else 2, self.squeeze, self.inner_norm))
                incoming = channels
        self.body = nn.Sequential(*units)
        if init == "xavier":
            initialise(self, nn.init.xavier_uniform_)
        else:
            initialise(self, nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
        if init == "sface":
            for module in self.modules():
                if isinstance(module, nn.PReLU):
                    nn.init.ones_(module.weight)
                elif isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.data *= 2

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        norm, dropout, flatten, linear, embedding_norm = self.output_layer
        x = self.body(self.input_layer(image_BCHW))
        return in_full_precision(flatten(dropout(norm(x))), linear, embedding_norm)


class IRSENet(IRNet):
    """`IRNet` with squeeze-and-excitation."""

    squeeze = True


class AdaFaceIRNet(IRNet):
    """`IRNet` as AdaFace and CVLface build and initialise it; weights of one do not fit the other."""

    preprocessing = MappingProxyType({"channels": "bgr"})  # its code reads images with OpenCV
    inner_norm = True

    def __init__(
        self, embedding_size: int = 512, dropout: float = 0.4, input_size: int | list[int] = 112
    ) -> None:
        super().__init__(embedding_size, dropout, input_size, affine=False, init="kaiming")


for _network, _prefix, _sizes in (
    (IRNet, "ir_", ("50", "101", "152")),
    (IRSENet, "ir_se_", ("50", "101", "152")),
    (AdaFaceIRNet, "adaface_ir_", ("18", "34", "50", "101")),
):
    register_members(_network, {_prefix + size: STAGES[size] for size in _sizes})
