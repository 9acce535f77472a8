"""Means and speed since the last log line, summed where they were computed, so that nothing waits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from facerec import distributed
from facerec.device import peak_memory


class Meter:
    """Means of scalar tensors over a window of steps, and samples per second.

    `add` only adds tensors on their device; `row` moves them all to the host at once.

    Attributes:
        samples: trained on in this window, by all ranks; the loop counts them.
        flops: floating-point operations per sample in training; 0 where not known.
        peak_flops: operations per second that the device does at best (`facerec.device.matmul_speed`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flops, self.peak_flops = 0.0, math.inf
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Count time and samples from now on."""
        self.samples, self._waited, self._started = 0, 0.0, time.perf_counter()

    def add(self, values: dict[str, Tensor], weight: float) -> None:
        """Take in scalar tensors that each stand for `weight` samples (or steps)."""
        for name, value in values.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock, for work that is not training (an evaluation, a checkpoint)."""
        begun = time.perf_counter()
        yield
        self._started += time.perf_counter() - begun

    def row(self) -> dict[str, float | None]:
        """Return the means over all ranks and the speed, and begin a new window.

        Beside the means: ``samples_per_second`` and ``tflops`` (10¹² operations per second) of all ranks,
        ``mfu`` (the latter over what their devices do at best), ``data_wait`` (fraction of the time) and
        ``peak_memory`` (10⁹ bytes) of this rank. A mean that is not finite is None: plain JSON has no NaN.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        row: dict[str, float | None] = {}
        if self._sums:
            weight_N = torch.tensor(list(self._weights.values()))
            sum_N = torch.stack(list(self._sums.values()))
            sum_N, weight_N = distributed.all_reduce_sum(torch.stack((sum_N, weight_N.to(sum_N.device))))
            for name, mean in zip(self._sums, (sum_N / weight_N).tolist(), strict=True):
                row[name] = mean if math.isfinite(mean) else None
        row["samples_per_second"] = self.samples / seconds
        row["data_wait"] = min(1.0, self._waited / seconds)
        row["peak_memory"] = peak_memory(self.device) / 1e9
        if self.flops:
            flops = self.samples / seconds * self.flops
            row |= {"tflops": flops / 1e12, "mfu": flops / (self.peak_flops * distributed.world_size())}
        self._sums, self._weights = {}, {}
        self.reset()
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return sum and weight of each mean, per rank; all ranks call this."""
        sums = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        own = dict(zip(self._sums, zip(sums, self._weights.values(), strict=True), strict=True))
        return {"window": distributed.all_gather_object(own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the means; with another world size, rank 0 gets those of all ranks."""
        window, rank = state["window"], distributed.rank()
        if len(window) == distributed.world_size():
            own = window[rank]
        else:
            own = {
                name: [sum(x) for x in zip(*(part[name] for part in window), strict=True)]
                for name in window[0]
            }
            own = own if rank == 0 else dict.fromkeys(own, (0.0, 0.0))
        self._sums = {name: torch.tensor(value, device=self.device) for name, (value, _) in own.items()}
        self._weights = {name: weight for name, (_, weight) in own.items()}
