"""Device, number format and seeds."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import math
import os
import random
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

from facerec import launch
from facerec.errors import require

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto", *, key: str = "trainer.device", own: bool = True) -> torch.device:
    """Return the device called `name`: ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Args:
        name: ``cuda`` under torchrun is the GPU of this process's local rank.
        key: the setting that messages name.
        own: every rank is given this name, and needs a device of its own.

    Raises:
        ConfigError: a name torch does not know, a device this machine does not have, or one that several
            ranks would use.
    """
    ranks = launch.world_size()
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) if own else 1
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["mps"] &= ranks == 1  # nothing carries tensors from one process to another there
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    hint = f"would put {neighbours} processes on one GPU; with cuda each takes its own"
    require(neighbours == 1 or not name.startswith("cuda:"), key, name, hint)
    if name == "cuda" and available["cuda"] and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun starts one process for each device
    kind, _, index = name.partition(":")
    known = kind in available and (not index or (kind == "cuda" and index.isdigit()))
    require(known, key, name, "must be auto, cpu, cuda, cuda:N or mps")
    require(available[kind], key, name, f"this machine offers no {kind}; use auto or cpu")
    if index:
        count = torch.cuda.device_count()
        require(int(index) < count, key, name, f"this machine has {count} CUDA devices, from 0")
    return torch.device(name)


@functools.cache
def number_format(precision: str, device: torch.device) -> str:
    """Return the precision to compute in: ``auto`` is bf16 where `device` has instructions for it, else fp32.

    A CPU without them takes bf16 all the same, about ten times slower than fp32, and is warned of, once.
    """
    if precision in ("fp32", "fp16"):
        return precision
    capable = _has_bf16(device)
    if precision == "auto":
        return "bf16" if capable else "fp32"
    if not capable and device.type == "cpu":
        hint = "about ten times slower than fp32; take fp32, or auto"
        log.warning("precision=bf16: this processor has no instructions for it, so it is %s", hint)
    return precision


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if sys.platform != "linux":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    with contextlib.suppress(OSError):
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(" ".join(flags).split()))
    return False


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the mixed-precision context of a forward pass; none for fp32."""
    precision = number_format(precision, device)
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all work queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def copied(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors on `device`; what is queued there next waits for them, the host does not.

    On CUDA the copies have a stream of their own: out of pinned memory they run beside the work that is
    queued already, that of the batch before.
    """
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):  # None changes nothing
        copies = [tensor.to(device, non_blocking=True) for tensor in tensors]
    if stream is not None:
        here = torch.cuda.current_stream(device)
        here.wait_stream(stream)
        for copy in copies:
            copy.record_stream(here)  # or its memory would take the next copy while it is still read
    return copies


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has had, on the GPU or else in main memory; 0 if not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on the GPU, or else in main memory; None if not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):  # a system other than Linux
        known = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(known[1]) * 1024 if known else None
    return None


def release_memory() -> None:
    """Give unused main memory back to the system; else holes and cycles that evaluations leave add up."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def matmul_speed(device: torch.device, precision: str) -> float:
    """Measure, in a tenth of a second, the floating-point operations per second of large matrix products.

    A multiply-add counts as two operations.
    """
    side = 8192 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=PRECISIONS[precision])
    quickest = math.inf
    for _ in range(4):  # the first one loads kernels
        wait_for(device)
        start = time.perf_counter()
        torch.mm(a, a)
        wait_for(device)
        quickest = min(quickest, time.perf_counter() - start)
    return 2 * side**3 / quickest


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device) alike."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from the global state get the seed too
    torch.manual_seed(seed)
