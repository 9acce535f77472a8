"""Cost of a backbone, counted on shapes: multiply-adds of a forward pass, memory of a backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(backbone: nn.Module, size: int | Sequence[int] = 112) -> int:
    """Return the multiply-adds of an image (H×W or a square) through convolutions, products and attention.

    Papers and model zoos of the field call a multiply-add one FLOP. Their figures (6.33 G for iresnet50, 0.45
    for mbf) also count batch norm and PReLU: half a percent to three percent more.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            _forward(backbone, _weightless(backbone), 1, size)
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def activation_bytes(backbone: nn.Module, size: int | Sequence[int] = 112, *, half: bool = False) -> int:
    """Return the bytes per image that the backward pass needs, in the modes the backbone's parts are in.

    Parameters, buffers, recomputed activations and what a block needs while it recomputes are not counted;
    with `half` all numbers count as bf16 or fp16.
    """
    weightless = _weightless(backbone, torch.bfloat16 if half else None)
    own = {tensor.untyped_storage()._cdata for tensor in weightless.values()}
    kept: dict[int, torch.Tensor] = {}  # by storage, which several may share

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(backbone, weightless, batch := 2, size)  # batch norm takes no single image
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // batch


def inference_bytes(backbone: nn.Module, size: int | Sequence[int] = 112) -> int:
    """Return the bytes of activations per image that a forward pass holds at once, at most; no gradients."""
    weightless = _weightless(backbone)
    held = _Held(weightless.values())
    with torch.no_grad(), held:
        _forward(backbone, weightless, batch := 2, size)
    return held.most // batch


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and not yet freed, besides those of `own`."""

    def __init__(self, own: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return result

    def _free(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


def require_batches_of_one(backbone: nn.Module, size: int | Sequence[int] = 112) -> None:
    """Raise ValueError where `backbone`, in the modes its parts are in, takes no batch of a single image."""
    _forward(backbone, _weightless(backbone), 1, size)


def _weightless(backbone: nn.Module, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return parameters and buffers as shapes without values."""
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    return {
        name: tensor.detach()
        .to("meta", dtype=dtype if tensor.is_floating_point() else None)
        .requires_grad_(tensor.requires_grad)
        for name, tensor in state.items()
    }


def _forward(
    backbone: nn.Module, weightless: dict[str, torch.Tensor], batch: int, size: int | Sequence[int]
) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    dtype = next((tensor.dtype for tensor in weightless.values() if tensor.is_floating_point()), None)
    images = torch.empty(batch, 3, height, width, device="meta", dtype=dtype)
    torch.func.functional_call(backbone, weightless, (images,))
