"""An exponential moving average of the backbone's weights, beside the raw ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from facerec import distributed


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
        raw = {name: x for name, x in module.state_dict().items() if x.is_floating_point()}
        self._state = {name: x.clone() for name, x in raw.items()}
        self._raw, self._average = ([*map(distributed.local, s.values())] for s in (raw, self._state))

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take in the weights as they are; `number` counts the updates from 1."""
        decay = min(self.decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(self._average, self._raw, 1 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew with the weights as they are."""
        torch._foreach_copy_(self._average, self._raw)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the averages; afterwards it has its own weights again, to the bit."""
        pairs = list(zip(self._raw, self._average, strict=True))
        self._swap(pairs)
        try:
            yield
        finally:
            self._swap(pairs[::-1])  # backwards, since a tensor with several names has been swapped as often

    @torch.no_grad()
    def _swap(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Exchange the contents, since compiled code and FSDP know the memory of the weights."""
        for raw, average in pairs:
            before = raw.clone()
            raw.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, by the names that the module's state dict has."""
        return self._state
