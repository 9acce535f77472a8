"""Stops a run whose numbers are no longer numbers, and says where it began; warns where nothing is learnt."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.errors import NonFiniteError
from facerec.models.checkpoint import newest

log = logging.getLogger(__name__)


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
        raise NonFiniteError(f"step {step}: the loss or a gradient is not finite{self._seen_and_kept()}")

    def _seen_and_kept(self) -> str:
        """The rest of the message: where it was seen, what there is to go back to, what to change."""
        culprit = next(filter(None, distributed.all_gather_object(first_non_finite(self.modules))), None)
        safe = newest(self.checkpoints)
        kept = f"{safe} is the last good checkpoint" if safe else "no checkpoint exists yet"
        return (
            (f", seen in {culprit}" if culprit else "")
            + f"; {kept}. Lower optimizer.lr, lengthen schedule.warmup, set trainer.clip_norm, "
            "or use trainer.precision=fp32"
        )

    def check_weights(self, step: int) -> None:
        """Raise `NonFiniteError` where an update has made weights of any process NaN or infinite.

        Loss and gradients of step `step` may have been fine: this looks at what it left, before that is used
        or saved. One pass over parameters and buffers on their device, then one number for the host.
        """
        tensors = [t for m in self.modules.values() for t in (*m.parameters(), *m.buffers())]
        largest = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point()], float("inf"))
        bad = ~torch.stack([norm.float().to(self.device) for norm in largest]).isfinite().all()
        if not distributed.all_reduce_max(bad.int()):
            return
        raise NonFiniteError(f"step {step}: the weights are not finite{self._seen_and_kept()}")

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


class Plateau:
    """Warns of a loss that is exactly 0, that of guessing, or flat from its start, for a long time.

    It looks at the rows of the log only, so that nothing waits for a device. A long time is a tenth of the
    run, within 200 and 2,000 steps; a loss of 0 from the first step to the last is too long in any run.

    Args:
        head: whose loss it is.
        begin: the step that the run, or this part of it, begins at.
    """

    def __init__(self, head: nn.Module, begin: int = 0) -> None:
        self.guess = math.inf
        if hasattr(head, "weight"):  # else it compares images with each other
            self.guess = math.log(head.num_classes * head.sample_rate)  # type: ignore[operator]
        self.begin = self._last = begin  # of the latter: the row before
        self._lr = 0.0
        self._since: dict[str, int] = {}  # when the loss got to where it stays
        # Steps and losses since the end of warm-up; None: the loss has moved, or has begun before this part.
        self._start: list[tuple[int, float]] | None = None if begin else []

    def look(self, step: int, whole: float, lr: float, row: Mapping[str, float | None]) -> None:
        """Take in the row of the log at `step`, when the share `whole` of the run is done."""
        loss = row.get("loss")
        if loss is None:
            return
        long = min(max(step / max(whole, 1e-9) / 10, 200), 2000)
        near = {"0": loss == 0, "guess": loss > 0 and abs(loss / self.guess - 1) < 0.005}
        for place, there in near.items():
            since = self._since.setdefault(place, self._last) if there else self._since.pop(place, 0)
            if there and (step - since >= long or (place == "0" and since == self.begin and whole >= 1)):
                self._warn(place, step, since, loss)
        self._look_at_start(step, lr, loss, row.get("accuracy"), long)
        self._last, self._lr = step, lr

    def _look_at_start(self, step: int, lr: float, loss: float, accuracy: float | None, long: float) -> None:
        if self._start is None:
            return
        if lr > self._lr * 1.001:  # warm-up goes on
            self._start.clear()
            return
        self._start.append((step, loss))
        begin = self._start[0][0]
        if step - begin < long:
            return
        middle = begin + long / 2
        halves = [[x for at, x in self._start if (at <= middle) is early] for early in (True, False)]
        first, second = (sum(half) / max(len(half), 1) for half in halves)
        self._start = None
        if first > 0 and abs(second / first - 1) < 0.01 and (accuracy or 0) < 0.5:
            self._warn("start", step, begin, second)

    def _warn(self, place: str, step: int, since: int, loss: float) -> None:
        if since < 0 or distributed.rank():
            return
        self._since[place] = -(2**62)
        log.warning(
            "step %d: the loss %s since step %d. Usual causes: %s",
            *(step, _STAYS[place][0].format(loss=loss), since, _STAYS[place][1]),
        )


_STAYS = {
    "0": (
        "has been exactly 0, and nothing is learnt,",
        "batches without two images of one identity (data.shuffle=identity brings them together); "
        "a margin that every pair keeps already",
    ),
    "guess": (
        "has stayed at {loss:.4g}, that of guessing,",
        "labels that do not belong to the images; embeddings all alike after too high an optimizer.lr; "
        "input.mean and input.std of other images",
    ),
    "start": (
        "has not left its start, {loss:.4g},",
        "an optimizer.lr far too low or too high; backbone.frozen; head.s or head.m too large; labels that "
        "do not belong to the images",
    ),
}
