"""The length of an embedding as a measure of image quality: running statistics, and what is reported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facerec.distributed import all_reduce_mean, all_reduce_sum


class RunningNorm(nn.Module):
    """Standardises norms with their running mean and deviation, which move in training mode only.

    These start at 20 and 100, as AdaFace's do, and are those of all ranks, and in the checkpoint. Each call
    in training mode first takes in its own batch, with the weight `ema` in (0, 1].
    """

    def __init__(self, ema: float) -> None:
        super().__init__()
        self.ema = ema
        self.mean = nn.Buffer(torch.tensor(20.0))
        self.deviation = nn.Buffer(torch.tensor(100.0))

    @torch.no_grad()
    def forward(self, norm_B: Tensor, epsilon: float = 0.0) -> Tensor:
        """Return (norm − mean)/(deviation + epsilon), without gradient."""
        if self.training:
            mean = all_reduce_mean(norm_B)
            squares = all_reduce_sum((norm_B - mean).square().sum())
            count = all_reduce_sum(torch.ones_like(norm_B).sum())
            deviation = (squares / (count - 1).clamp_min(1)).sqrt()  # of one sample: 0
            self.mean.lerp_(mean.to(self.mean.dtype), self.ema)
            self.deviation.lerp_(deviation.to(self.mean.dtype), self.ema)
        width = (self.deviation + epsilon).clamp_min(torch.finfo(self.deviation.dtype).tiny)
        return (norm_B - self.mean) / width


@torch.no_grad()
def quality_statistics(quality_B: Tensor) -> dict[str, Tensor]:
    """Return mean, deviation, and 5th, 50th and 95th percentile of a batch's qualities, as scalar tensors."""
    return {
        "quality_mean": quality_B.mean(),
        "quality_deviation": quality_B.std(correction=0),
        **{f"quality_p{percent:02}": quality_B.quantile(percent / 100) for percent in (5, 50, 95)},
    }
