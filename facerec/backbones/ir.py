"""IR and IR-SE, the improved residual networks as face.evoLVe lays them out: input_layer, body, output_layer.

Source: ArcFace (1801.07698), section 3.2; the entries of the state dict are named as in the published models.
"101" has 100 layers by the count that gives the others theirs; its name is the published one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, in_full_precision, require_fraction
from facerec.backbones.prelu import PReLU

# Units of each of the four stages.
STAGES = {"50": (3, 4, 14, 3), "101": (3, 13, 30, 3), "152": (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)


class Subsample(nn.Module):
    """Every `stride`-th pixel of every `stride`-th row: what max pooling by single pixels gives, for less."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


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
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(incoming, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        else:
            self.shortcut_layer = Subsample(stride) if stride > 1 else nn.Identity()
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
        stages: units of each of the four stages.
        squeeze: squeeze-and-excitation in every unit (the ``ir_se`` names).
        inner_norm: a batch norm between the first convolution of a unit and its PReLU (AdaFace's variant).
        affine: whether the batch norm of the embedding has weight and bias.
        embedding_size: D.
        dropout: share of the last feature map set to 0 in training, 0 … <1.
        input_size: pixels, multiples of 16; 112 and 224 are published.
    """

    def __init__(
        self,
        stages: Sequence[int],
        *,
        squeeze: bool,
        embedding_size: int,
        dropout: float,
        input_size: int | list[int],
        inner_norm: bool = False,
        affine: bool = True,
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
        for channels, count in zip(WIDTHS, stages, strict=True):
            for i in range(count):
                units.append(Unit(incoming, channels, 1 if i else 2, squeeze, inner_norm))
                incoming = channels
        self.body = nn.Sequential(*units)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        norm, dropout, flatten, linear, embedding_norm = self.output_layer
        x = self.body(self.input_layer(image_BCHW))
        return in_full_precision(flatten(dropout(norm(x))), linear, embedding_norm)


def _register(name: str, stages: Sequence[int], squeeze: bool) -> None:
    @BACKBONES.register(name)
    def build(embedding_size: int = 512, dropout: float = 0.5, input_size: int | list[int] = 112) -> Backbone:
        return IRNet(
            stages, squeeze=squeeze, embedding_size=embedding_size, dropout=dropout, input_size=input_size
        )


for _depth, _stages in STAGES.items():
    _register(f"ir_{_depth}", _stages, squeeze=False)
    _register(f"ir_se_{_depth}", _stages, squeeze=True)
