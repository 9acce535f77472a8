"""Memory for batches that is used again as soon as nothing refers to the batch before.

The C library gives freed blocks of this size back to the system, which clears them page by page when the
next batch is made: of 256 images as floats (39 MB) that takes half as long as decoding them. On a CUDA
device, and in pinned memory, torch keeps freed blocks itself; here it is done for plain memory.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

_LARGE: Final = 1 << 20  # bytes; what is smaller stays with the C library anyhow
_KEPT: Final = 16  # free blocks of one size: a loader's batches ahead, and what is made of one

_free: defaultdict[int, deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=_KEPT))


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu", *, pin: bool = False
) -> torch.Tensor:
    """A tensor of any content, like `torch.empty`; large ones in plain memory take a block that was freed.

    A block is free when no tensor, view or NumPy array of it is left, in whatever thread or graph: torch lets
    go of its storage then, and the storage of the array it was made of.
    """
    size = math.prod(shape) * dtype.itemsize
    if pin or size < _LARGE or torch.device(device).type != "cpu":
        return torch.empty(*shape, dtype=dtype, device=device, pin_memory=pin)
    free = _free[size]
    try:
        block = free.pop()
    except IndexError:  # torch's own memory begins where vector instructions like it
        block = torch.empty(size, dtype=torch.uint8).numpy()
    lent = block[:]  # an array of its own, whose end is the end of the last tensor made of it
    weakref.finalize(lent, free.append, block).atexit = False
    return torch.from_numpy(lent).view(dtype).view(*shape)
