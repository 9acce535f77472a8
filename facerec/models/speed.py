"""Latency and throughput of a model by batch size, and the memory its forward pass takes.

Shape suffixes: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch

from facerec.models.model import Model


class Speed(NamedTuple):
    """Speed of batches of one size: median seconds for a batch, images per second, peak bytes on CUDA."""

    batch: int
    seconds: float
    images_per_second: float
    peak: int | None


def measure(model: Model, batch: int, *, seconds: float = 1.0, precision: str = "fp32") -> Speed:
    """Time the forward pass of `batch` uint8 images on the model's device: the median after a warm-up.

    Args:
        seconds: to measure for; five passes at least.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast).
    """
    cuda = model.device.type == "cuda"
    image_BHWC = torch.randint(0, 256, (batch, *model.input.shape, 3), dtype=torch.uint8, device=model.device)

    def run() -> float:
        start = time.perf_counter()
        model.forward(image_BHWC, precision).cpu()  # waits for the device
        return time.perf_counter() - start

    with model.evaluating():
        if cuda:
            torch.cuda.reset_peak_memory_stats(model.device)
        run()
        end = time.perf_counter() + seconds
        taken = [run() for _ in range(5)]
        while time.perf_counter() < end:
            taken.append(run())
    median = statistics.median(taken)
    peak = torch.cuda.max_memory_allocated(model.device) if cuda else None
    return Speed(batch, median, batch / median, peak)
