"""What happened since the last log line, summed where it was computed, so that nothing waits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facerec import distributed
from facerec.device import peak_memory


@dataclass(frozen=True)
class Yardstick:
    """What a run's speed and memory are measured on.

    Attributes:
        device: of this process.
        flops: floating-point operations that training on one sample takes; 0 where not known.
        speed: operations a second that the device does at best (see `facerec.device.matmul_speed`).
    """

    device: torch.device
    flops: float = 0.0
    speed: float = math.inf


class Meter:
    """Means of scalar tensors over a window of steps, and how fast the samples went by.

    `add` only adds tensors on their device; `row` moves them all to the host at once.
    """

    def __init__(self, yardstick: Yardstick) -> None:
        self.yardstick = yardstick
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._samples = 0
        self._data_wait = 0.0
        self._started = time.perf_counter()
        self._paused: float | None = None

    def add(self, values: dict[str, Tensor], weight: float) -> None:
        """Take in scalar tensors that each stand for `weight` samples (or steps)."""
        for name, value in values.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def count(self, samples: int, data_wait: float) -> None:
        """Count samples trained on, by all processes, and the seconds their loading was waited for."""
        self._samples += samples
        self._data_wait += data_wait

    def pause(self) -> None:
        """Stop the clock, for work that is not training (an evaluation, a checkpoint)."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        """Start the clock again after `pause`."""
        if self._paused is not None:
            self._started += time.perf_counter() - self._paused
            self._paused = None

    def state_dict(self) -> dict[str, Any]:
        """The row that was begun: sum and weight of each mean, of every process; all must call this."""
        sums = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        mine = dict(zip(self._sums, zip(sums, self._weights.values(), strict=True), strict=True))
        return {"window": distributed.all_gather_object(mine)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the row that was begun, whose speed is that of the steps from now on.

        A run of another number of processes gives the first of them what all had.
        """
        window = state["window"]
        if len(window) != distributed.world_size():
            total = {
                name: tuple(map(sum, zip(*(part[name] for part in window), strict=True)))
                for name in window[0]
            }
            window = [total] + [dict.fromkeys(total, (0.0, 0.0))] * (distributed.world_size() - 1)
        mine = window[distributed.rank()]
        self._sums = {
            name: torch.tensor(value, device=self.yardstick.device) for name, (value, _) in mine.items()
        }
        self._weights = {name: weight for name, (_, weight) in mine.items()}

    def restart_clock(self) -> None:
        """Count time and samples from now on."""
        self._samples, self._data_wait, self._started = 0, 0.0, time.perf_counter()

    def row(self) -> dict[str, float | None]:
        """Means over all processes, and how fast it went; then the meter starts anew.

        Beside the means: ``samples_per_second`` and ``tflops`` (10¹² operations a second) of all processes,
        ``mfu`` (the latter as a share of what their devices do at best), ``data_wait`` (share of the time)
        and ``peak_memory`` (10⁹ bytes) of this one.

        A mean that is not finite (the hardest other class where there is only one class) is None, so that
        the row is plain JSON.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        names = list(self._sums)
        means: list[float] = []
        if names:
            sum_N = torch.stack([self._sums[name] for name in names])
            weight_N = torch.tensor([self._weights[name] for name in names]).to(sum_N.device)
            sum_N, weight_N = distributed.all_reduce_sum(torch.stack((sum_N, weight_N)))
            means = (sum_N / weight_N).tolist()
        row: dict[str, float | None] = {
            name: value if math.isfinite(value) else None for name, value in zip(names, means, strict=True)
        }
        row["samples_per_second"] = self._samples / seconds
        row["data_wait"] = min(1.0, self._data_wait / seconds)
        row["peak_memory"] = peak_memory(self.yardstick.device) / 1e9
        if self.yardstick.flops:
            done = self._samples / seconds * self.yardstick.flops
            row["tflops"] = done / 1e12
            row["mfu"] = done / (self.yardstick.speed * distributed.world_size())
        self.__init__(self.yardstick)  # type: ignore[misc]
        return row
