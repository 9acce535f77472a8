"""Stops a run whose numbers are no longer numbers, and says where it began."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facerec import processes
from facerec.errors import NonFiniteError
from facerec.training.last import find


class Guard:
    """Watches the loss and the norm of all gradients of every step.

    On a CPU a step that is not finite is refused before the weights change. On a GPU looking at a number
    means waiting for the device, so the first bad step is remembered there and told by `check`, which the
    loop calls when it logs and before it saves: no checkpoint is ever written after a bad step.

    Args:
        modules: where to look for the culprit, by name.
        device: of the run.
        checkpoints: the run's folder of them, where the message finds the one to go back to.
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
        """Look at step `step` (from 1) after its backward pass; raises `NonFiniteError` on a CPU."""
        finite = loss.isfinite() if self.scaled else loss.isfinite() & gradient_norm.isfinite()
        first = (self._bad_step == 0) & ~finite
        self._bad_step = torch.where(first, step, self._bad_step)
        if self.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise `NonFiniteError` if any step so far was not finite; waits for the device.

        All processes raise it at the same step, since loss and norm are those of all together, and name what
        the first of them has found: a shard of the class weights is on one of them only.
        """
        step = int(self._bad_step)
        if not step:
            return
        culprit = next(filter(None, processes.each(first_non_finite(self.modules))), None)
        safe = find(self.checkpoints)
        kept = f"{safe} is the last good checkpoint" if safe else "no checkpoint exists yet"
        raise NonFiniteError(
            f"step {step}: the loss or a gradient is not finite"
            + (f", seen in {culprit}" if culprit else "")
            + f"; {kept}. Lower optimizer.lr, lengthen schedule.warmup, set trainer.clip_norm, "
            "or use trainer.precision=fp32"
        )

    def check_scale(self, scaler: torch.amp.GradScaler, step: int) -> None:
        """Raise `NonFiniteError` where an fp16 scaler has given up: its scale has fallen below 1."""
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise NonFiniteError(
                f"step {step}: the fp16 scale has fallen to {scaler.get_scale():g}, so nothing is learnt any "
                "more; use trainer.precision=bf16, or lower optimizer.lr"
            )


def first_non_finite(modules: Mapping[str, nn.Module]) -> str | None:
    """Name of the first parameter whose gradient, or else value, holds a NaN or an infinity."""
    for what in ("gradient", "value"):
        for module_name, module in modules.items():
            for name, parameter in module.named_parameters():
                tensor = parameter.grad if what == "gradient" else parameter
                if tensor is not None and tensor.is_sparse:  # of sampled rows
                    tensor = tensor._values()
                if tensor is not None and not bool(tensor.isfinite().all()):
                    return f"the {what} of {module_name}.{name}"
    return None
