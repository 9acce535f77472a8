"""Steps of class weights that are kept in bf16: computed in fp32, and rounded up or down at random.

A step of the optimizer is often smaller than half the distance between two bf16 numbers, so that rounding to
the nearest would lose it, always. Rounded up with a probability of what is left over, it arrives in the mean
(Gupta et al. 2015, ICML, "Deep Learning with Limited Numerical Precision").

Shapes: R rows, K rows of a block or of a sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from facerec.errors import require

_BLOCK = 2**22  # numbers worked on at a time


def require_sgd(optimizer: str, precision: str, weight_dtype: str) -> None:
    """`ConfigError` where bf16 class weights meet what they do not go with."""
    fits = weight_dtype != "bf16" or (optimizer == "sgd" and precision != "fp16")
    require(fits, "head.weight_dtype", weight_dtype, "goes with optimizer=sgd, and not with fp16")


@contextlib.contextmanager
def half_weights(optimizer: torch.optim.Optimizer, seed: int | None = None) -> Iterator[None]:
    """Within ``with half_weights(optimizer, seed):`` the optimizer steps all parameters but those in bf16.

    These are stepped at the end by SGD as the optimizer's settings say, with their momentum in bf16, too. A
    sparse gradient steps the rows it has (see `sampled_rows`).

    Args:
        seed: of this step's rounding, the same on all ranks, so that replicas of a weight are rounded alike;
            None: torch's own generator, which differs between ranks.
    """
    held = [
        (group, [p for p in group["params"] if p.dtype == torch.bfloat16], list(group["params"]))
        for group in optimizer.param_groups
    ]
    for group, half, _ in held:
        if half:
            group["params"] = [p for p in group["params"] if p.dtype != torch.bfloat16]
    try:
        yield
    finally:
        for group, half, every in held:
            if half:
                group["params"] = every
    stepped = [(p, group) for group, half, _ in held for p in half if p.grad is not None]
    generator = None
    if stepped and seed is not None:
        generator = torch.Generator(stepped[0][0].device).manual_seed(seed)
    for parameter, group in stepped:
        step(parameter, optimizer.state[parameter], group, generator)


@torch.no_grad()
def step(
    parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any], generator: torch.Generator | None
) -> None:
    """One step of SGD with momentum and weight decay, a block of rows at a time."""
    gradient = parameter.grad
    assert gradient is not None
    if group["momentum"] and state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    momentum = state.get("momentum_buffer")
    block = max(1, _BLOCK // parameter[0].numel())
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        places: list[Any] = list(gradient.indices()[0].split(block))
        parts = list(gradient.values().split(block))
    else:
        places = [slice(start, start + block) for start in range(0, len(parameter), block)]
        parts = list(gradient.split(block))
    for row_K, part in zip(places, parts, strict=True):
        rows = parameter[row_K].float()
        change = part.float().add_(rows, alpha=group["weight_decay"])
        if momentum is not None:
            moved = momentum[row_K].float().mul_(group["momentum"]).add_(change)
            momentum[row_K] = moved.to(momentum.dtype)
            change = change.add_(moved, alpha=group["momentum"]) if group["nesterov"] else moved
        parameter[row_K] = rounded_at_random(rows.sub_(change, alpha=float(group["lr"])), generator)


def rounded_at_random(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """fp32 as bf16, up with the probability of the part that is cut off, and down otherwise."""
    noise = torch.randint(0, 2**16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits = (x.contiguous().view(torch.int32) + noise) & -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)
