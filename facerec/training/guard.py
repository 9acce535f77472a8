"""Stop a run on NaN or Inf, and name the layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.errors import NonFiniteError
from facerec.models.checkpoint import newest_checkpoint


class Guard:
    """Watches loss and gradient norm of every step.

    On a CPU a step that is not finite is refused before the weights change. On a GPU looking at a number
    means waiting for the device, so the first bad step is remembered there until `check`, which the loop
    calls when it logs and before it saves: no checkpoint is ever written after a bad step.

    Args:
        modules: searched for the layer, by name.
        checkpoints: the run's folder of them, for the message.
        scaled: an fp16 scaler is at work, which itself skips steps whose gradients overflow.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], device: torch.device, checkpoints: Path, scaled: bool = False
    ) -> None:
        self.modules = modules
        self.device = device
        self.checkpoints = checkpoints
        self.scaled = scaled
        self._bad_step = torch.zeros((), dtype=torch.int64, device=device)

    def watch(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Look at step `step` (from 1) after its backward pass; raise `NonFiniteError` on a CPU."""
        finite = loss.isfinite() if self.scaled else loss.isfinite() & gradient_norm.isfinite()
        first = (self._bad_step == 0) & ~finite
        self._bad_step = torch.where(first, step, self._bad_step)
        if self.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise `NonFiniteError`, on all ranks, if any step so far was not finite; waits for the device."""
        if step := int(self._bad_step):
            raise self._error(f"step {step}: the loss or a gradient is not finite")

    def check_weights(self, step: int) -> None:
        """Raise `NonFiniteError` where step `step` has left NaN or Inf in the weights of any rank.

        One pass over parameters and buffers on their device, then one number for the host.
        """
        tensors = [
            distributed.local(t) for m in self.modules.values() for t in (*m.parameters(), *m.buffers())
        ]
        numbers = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
        largest = torch._foreach_norm(numbers, float("inf"))
        bad = ~torch.stack([norm.float().to(self.device) for norm in largest]).isfinite().all()
        if distributed.all_reduce_max(bad.int()):
            raise self._error(f"step {step}: the weights are not finite")

    def check_scale(self, scaler: torch.amp.GradScaler, step: int) -> None:
        """Raise `NonFiniteError` where an fp16 scaler has given up: its scale has fallen below 1."""
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise NonFiniteError(
                f"step {step}: the fp16 scale has fallen to {scaler.get_scale():g}, so nothing is learnt any "
                "more; use trainer.precision=bf16, or lower optimizer.lr"
            )

    def _error(self, problem: str) -> NonFiniteError:
        """Add where it was seen, by the first rank that has (shards differ), and what to go back to."""
        layer = next(filter(None, distributed.all_gather_object(first_non_finite(self.modules))), None)
        seen = f", seen in {layer}" if layer else ""
        safe = newest_checkpoint(self.checkpoints)
        kept = f"{safe} is the last good checkpoint" if safe else "no checkpoint exists yet"
        return NonFiniteError(
            f"{problem}{seen}; {kept}. Lower optimizer.lr, lengthen schedule.warmup, set trainer.clip_norm, "
            "or use trainer.precision=fp32"
        )


def first_non_finite(modules: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the first parameter whose gradient, or else value, holds a NaN or Inf."""
    for what in ("gradient", "value"):
        for module_name, module in modules.items():
            for name, parameter in module.named_parameters():
                own = distributed.own_part(parameter)
                tensor = own.grad if what == "gradient" else own
                if tensor is not None and tensor.is_sparse:  # of sampled rows
                    tensor = tensor._values()
                if tensor is not None and not bool(tensor.isfinite().all()):
                    return f"the {what} of {module_name}.{name}"
    return None
