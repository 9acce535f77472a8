"""Matrix products of embeddings and class weights, in the number format that is asked for.

They are most of a head's work. fp32 alone would leave a GPU's tensor cores idle: these take TF32 (10 bits of
mantissa) or bf16 (7 bits), and sum in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Format = Literal["auto", "fp32", "tf32", "bf16"]

_FIRST_WITH_TF32 = (8, 0)  # compute capability: Ampere


def resolve_format(name: Format, like: Tensor) -> Format:
    """Return the format of products of fp32 tensors such as `like`; ``auto`` is TF32 on GPUs that have it."""
    if like.dtype != torch.float32:
        return "fp32"  # as precise as the tensors are
    if name == "auto":
        has_tf32 = like.is_cuda and torch.cuda.get_device_capability(like.device) >= _FIRST_WITH_TF32
        return "tf32" if has_tf32 else "fp32"
    return name


@contextlib.contextmanager
def tensor_cores(name: Format) -> Iterator[None]:
    """Let fp32 products within the block use TF32 for ``tf32``, and else not; a CPU has no such format."""
    backend: Any = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32" if name == "tf32" else "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before


def multiply(a_MN: Tensor, b_NK: Tensor, name: Format, out: Tensor | None = None) -> Tensor:
    """Return a·b in the dtype of `a_MN`, into `out` if given; ``bf16`` rounds both and sums in fp32."""
    if name != "bf16":
        return torch.mm(a_MN, b_NK, out=out)
    a_MN, b_NK = a_MN.bfloat16(), b_NK.bfloat16()
    if a_MN.is_cuda:
        return torch.mm(a_MN, b_NK, out_dtype=torch.float32, out=out)
    return torch.mm(a_MN.float(), b_NK.float(), out=out)  # a product of two bf16 numbers is exact in fp32
