"""The IR networks of AdaFace and CVLface: units with one more batch norm, and no affine part at the end.

Source: AdaFace (2204.00964) and its published code; the entries have the names of the ``ir_50`` family but
other numbers inside a unit, so that weights of one do not fit the other. AdaFace's own weights take BGR
images. Its networks return the normalised embedding and its length; here it is raw as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from torch import nn

from facerec.backbones.base import BACKBONES, Backbone
from facerec.backbones.ir import IRNet

STAGES = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 14, 3), "101": (3, 13, 30, 3)}


class AdaFaceIRNet(IRNet):
    """`IRNet` as AdaFace builds and initialises it."""

    preprocessing = MappingProxyType({"channels": "bgr"})  # its code reads images with OpenCV

    def __init__(
        self, stages: Sequence[int], *, embedding_size: int, dropout: float, input_size: int | list[int]
    ) -> None:
        super().__init__(
            stages,
            squeeze=False,
            embedding_size=embedding_size,
            dropout=dropout,
            input_size=input_size,
            inner_norm=True,
            affine=False,
        )

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _register(name: str, stages: Sequence[int]) -> None:
    @BACKBONES.register(name)
    def build(embedding_size: int = 512, dropout: float = 0.4, input_size: int | list[int] = 112) -> Backbone:
        return AdaFaceIRNet(stages, embedding_size=embedding_size, dropout=dropout, input_size=input_size)


for _depth, _stages in STAGES.items():
    _register(f"adaface_ir_{_depth}", _stages)
