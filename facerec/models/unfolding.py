"""Give batch norms that were folded away the statistics of what they get, without a change of the outputs.

A network whose batch norms were folded into the layer before (ONNX) is rebuilt with batch norms that only
add a bias. In training they would divide by the deviation of the batch, which the folded layer has already
done, and the network would be another one. So their running mean and variance are set to those of images,
and their weight and bias so that they still do what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facerec import distributed


def unfold_batch_norms(backbone: nn.Module, names: Sequence[str], run: Callable[[], object]) -> None:
    """Set the statistics of the batch norms called `names` to those of the images that `run` embeds.

    Args:
        run: runs the backbone in eval mode over images, under torch.distributed each rank its share of them.
    """
    named = [backbone.get_submodule(name) for name in names]
    norms = [norm for norm in named if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)]
    sums = [torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms]
    counts = torch.zeros(len(norms), dtype=torch.float64)

    def note(i: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            x_CM = given[0].detach().double().transpose(0, 1).flatten(1)
            sums[i] += torch.stack([x_CM.sum(1), (x_CM**2).sum(1)]).cpu()
            counts[i] += x_CM.shape[1]

        return hook

    hooks = [norm.register_forward_pre_hook(note(i)) for i, norm in enumerate(norms)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for norm, total, count in zip(norms, sums, counts, strict=True):
        mean_2C = distributed.all_reduce_sum(total) / distributed.all_reduce_sum(count)
        _set_statistics(norm, mean_2C[0], (mean_2C[1] - mean_2C[0] ** 2).clamp(min=0))


@torch.no_grad()
def _set_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, mean_C: Tensor, var_C: Tensor) -> None:
    """New running statistics of a batch norm whose outputs stay the same in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    if not norm.affine:  # it has nothing that could take the old statistics' place
        return
    device = norm.weight.device
    mean_C, var_C = mean_C.to(device), var_C.to(device)
    scale_C = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift_C = norm.bias.double() - scale_C * norm.running_mean.double()
    norm.weight.copy_(scale_C * (var_C + norm.eps).sqrt())
    norm.bias.copy_(shift_C + scale_C * mean_C)
    norm.running_mean.copy_(mean_C)
    norm.running_var.copy_(var_C)
