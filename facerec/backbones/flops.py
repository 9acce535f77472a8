"""What one forward pass of a backbone costs, in the unit the field reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(backbone: nn.Module, size: int | Sequence[int] = 112) -> int:
    """Multiply-adds of one picture through the convolutions, matrix products and attention of `backbone`.

    Counted on shapes alone: nothing is computed and the backbone is not changed.

    Args:
        backbone: module from (B, 3, H, W) pictures.
        size: height and width in pixels, one number for a square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    weightless = {name: tensor.detach().to("meta") for name, tensor in state.items()}
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            picture = torch.empty(1, 3, height, width, device="meta")
            torch.func.functional_call(backbone, weightless, (picture,))
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def gflops(backbone: nn.Module, size: int | Sequence[int] = 112) -> float:
    """`multiply_adds` in thousands of millions.

    Papers and model zoos of the field call a multiply-add one FLOP, and so does this. Their figures (6.33 for
    iresnet50, 0.45 for mbf) also count batch norm and PReLU: half a percent to three percent more.
    """
    return multiply_adds(backbone, size) / 1e9
