"""An exponential moving average of the backbone's weights, beside the raw ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """a ← d·a + (1 − d)·w after each step, of all floating-point parameters and buffers of a module.

    It begins as the weights are. Of the n-th update d is min(decay, (1 + n) / (10 + n)), so that the first
    weights are soon forgotten: the rule of TensorFlow's ExponentialMovingAverage, with which FaceNet was
    trained (davidsandberg/facenet). Running statistics of batch norm are averaged as the weights are, so that
    both are of the same steps (as in timm); what is no floating-point number is that of the raw module.

    Args:
        module: its parameters and buffers must stay the same tensors from here on.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        state = module.state_dict(keep_vars=True)
        self._raw = {name: x for name, x in state.items() if x.is_floating_point()}
        self._average = {name: x.detach().clone() for name, x in self._raw.items()}

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take in the weights as they are; `number` counts the updates from 1."""
        decay = min(self.decay, (1 + number) / (10 + number))
        torch._foreach_lerp_([*self._average.values()], [*self._raw.values()], 1 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew with the weights as they are."""
        torch._foreach_copy_([*self._average.values()], [*self._raw.values()])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the averages; afterwards it has its own weights again, to the bit."""
        before = [tensor.data for tensor in self._raw.values()]
        try:
            for name, tensor in self._raw.items():
                tensor.data = self._average[name]
            yield
        finally:
            for tensor, data in zip(self._raw.values(), before, strict=True):
                tensor.data = data

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, by the names that the module's state dict has."""
        return self._average
