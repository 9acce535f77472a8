"""Cost of a backbone, counted on shapes: multiply-adds of a forward pass, memory of a backward pass."""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from facerec.backbones.base import in_eval_mode

aten = torch.ops.aten
# Products of matrices, and which argument is the first factor.
_PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}


def multiply_adds(backbone: nn.Module, size: int | Sequence[int] = 112) -> int:
    """Return the multiply-adds of an image (H×W or a square) through convolutions, products and attention.

    Papers and model zoos of the field call a multiply-add one FLOP. Their figures (6.33 G for iresnet50, 0.45
    for mbf) also count batch norm and PReLU: half a percent to three percent more.
    """
    counted = _Counted()
    with torch.no_grad(), in_eval_mode(backbone):
        _forward(backbone, _weightless(backbone), 1, size, counted)
    return counted.multiply_adds


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


class _Mode(TorchDispatchMode):
    """Computes as always; torch would load its compiler, to keep it off the mode: a second of each start."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class _Shapes(_Mode):
    """Makes the shapes that `_RESULTS` knows; torch's own way to these loads its compiler, too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _RESULTS[function](*args) if function in _RESULTS else None
        return super().__torch_dispatch__(function, types, args, kwargs) if made is None else made


def _convolution(x: torch.Tensor, weight: torch.Tensor, *settings: Any) -> torch.Tensor | None:
    _, strides, paddings, dilations, transposed, *_ = settings
    if transposed:
        return None
    ends = zip(x.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True)
    sides = [(side + 2 * pad - far * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, far in ends]
    return x.new_empty(len(x), len(weight), *sides)


def _batch_norm(x_BCHW: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    mean_or_std = x_BCHW.new_empty(x_BCHW.shape[1] if rest[4] else 0, dtype=torch.float32)  # in training
    return x_BCHW.new_empty(x_BCHW.shape), mean_or_std, mean_or_std.new_empty(mean_or_std.shape)


def _layer_norm(x: torch.Tensor, shape: Sequence[int], *_: Any) -> tuple[torch.Tensor, ...]:
    mean_or_std = x.new_empty(*x.shape[: -len(shape)], *(1 for _ in shape), dtype=torch.float32)
    return x.new_empty(x.shape), mean_or_std, mean_or_std.new_empty(mean_or_std.shape)


def _elementwise(*factors: Any) -> torch.Tensor:
    shape = np.broadcast_shapes(*(x.shape for x in factors if isinstance(x, torch.Tensor)))
    return factors[0].new_empty(shape, dtype=torch.result_type(*factors))


_RESULTS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: lambda bias, a, b: a.new_empty(len(a), b.shape[1]),
    aten.add.Tensor: _elementwise,
    aten.mul.Tensor: _elementwise,
    aten.mul.Scalar: _elementwise,
    aten.div.Tensor: _elementwise,
    aten._prelu_kernel.default: _elementwise,
    aten._safe_softmax.default: lambda x, *_: x.new_empty(x.shape),
    aten.hardtanh.default: lambda x, *_: x.new_empty(x.shape),
    aten.mean.dim: torch.sum,
    aten.mm.default: lambda a, b: a.new_empty(len(a), b.shape[1]),
    aten.bmm.default: lambda a, b: a.new_empty(len(a), a.shape[1], b.shape[2]),
    aten.add_.Tensor: lambda x, *_: x,
    aten.relu_.default: lambda x: x,
    aten.hardtanh_.default: lambda x, *_: x,
}


class _Counted(_Shapes):
    """Counts the multiply-adds of convolutions and products, into which attention is taken apart.

    `torch.utils.flop_counter` does so, too, and loads Triton for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = function.overloadpacket
        if function not in _RESULTS and operation not in _PRODUCTS:
            with self:
                parts = function.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if operation is aten.convolution:
            image, weight, transposed = args[0], args[1], args[6]
            self.multiply_adds += (image if transposed else result).numel() * weight[0].numel()
        elif operation in _PRODUCTS:
            self.multiply_adds += result.numel() * args[_PRODUCTS[operation]].shape[-1]
        return result


class _Held(_Mode):
    """Counts the bytes of the tensors that are made and not yet freed, besides those of `own`."""

    def __init__(self, own: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
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
        name: torch.empty_strided(
            tensor.shape,  # of a sharded one that of the whole
            tensor.stride(),
            dtype=dtype if dtype and tensor.is_floating_point() else tensor.dtype,
            device="meta",
            requires_grad=tensor.requires_grad,
        )
        for name, tensor in state.items()
    }


def _forward(
    backbone: nn.Module,
    weightless: dict[str, torch.Tensor],
    batch: int,
    size: int | Sequence[int],
    mode: _Mode | None = None,
) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    dtype = next((tensor.dtype for tensor in weightless.values() if tensor.is_floating_point()), None)
    images = torch.empty(batch, 3, height, width, device="meta", dtype=dtype)
    with mode or _Shapes(), _without_hooks(backbone):
        torch.func.functional_call(backbone, weightless, (images,))


@contextlib.contextmanager
def _without_hooks(backbone: nn.Module) -> Iterator[None]:
    """Let modules compute without what else happens there: FSDP gathers weights, a teacher keeps features."""
    hooks = [(m, m._forward_pre_hooks, m._forward_hooks) for m in backbone.modules()]
    for module, _, _ in hooks:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, before, after in hooks:
            module._forward_pre_hooks, module._forward_hooks = before, after
