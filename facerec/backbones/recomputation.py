"""Activation checkpointing: blocks of a backbone keep only their input and compute the rest a second time.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. A step costs one more
forward pass of the blocks, and needs the memory of one block beside the inputs of all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facerec.backbones.base import Backbone
from facerec.errors import ConfigError

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def recompute_activations(backbone: Backbone, wanted: bool = True) -> None:
    """Let the blocks of `backbone` compute their activations again in the backward pass.

    The blocks are its `recomputable_parts`. Values, gradients, random numbers (dropout), running statistics
    and the names in the state dict stay as they are, to the bit.

    Raises:
        ConfigError: the backbone has no such blocks.
    """
    if not wanted:
        return
    blocks = list(backbone.recomputable_parts())
    if not blocks:
        hint = f"{type(backbone).__name__} has no repeated blocks that could be recomputed; use false"
        raise ConfigError("trainer.checkpoint_activations", True, hint)
    for module, method in blocks:
        setattr(module, method, _Recomputed(module, getattr(module, method)))


class _Recomputed:
    """A method of a module, whose activations are recomputed; an object, so that copies take theirs along."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]) -> None:
        self.module, self.function = module, function

    def __call__(self, *arguments: Any) -> Tensor:
        if not (self.module.training and torch.is_grad_enabled()):
            return self.function(*arguments)
        # The compiler keeps by itself what has effects out of the second pass.
        contexts: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": self.contexts}
        result: Tensor = checkpoint(self.function, *arguments, use_reentrant=False, **contexts)
        return result

    def contexts(self) -> tuple[Any, Any]:
        """Return the contexts of the first and the second pass."""
        return contextlib.nullcontext(), _kept_statistics(self.module)


@contextlib.contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside `module` normalise as ever, but have seen this batch already."""
    norms = [part for part in module.modules() if isinstance(part, _BATCH_NORM)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
