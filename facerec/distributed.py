"""Rank, world size and collectives, which do nothing in a run of one process; the same code on NCCL and gloo.

Shapes: B samples of this rank, G samples of all ranks, … any.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from facerec import launch
from facerec.errors import FacerecError, LostContactError, UserError

T = TypeVar("T")

# The names that torch 2.14 gives two collectives; earlier versions know them by others.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Sizes = Sequence[int] | None
"""Samples of each rank; None: as many on all as on this one."""


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Initialize the process group of what torchrun has started, and destroy it at the end.

    Args:
        device: of this rank; NCCL on CUDA, gloo elsewhere and for what is on the CPU.

    Raises:
        UserError: the ranks do not find each other.
        LostContactError: another rank has ended before the work was done.
    """
    if launch.world_size() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    except (RuntimeError, ValueError) as error:
        hint = "start them by torchrun or scripts/train.sbatch, which say where to meet"
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"WORLD_SIZE={launch.world_size()}: the processes do not meet ({reason}); {hint}"
        ) from error
    try:
        yield
        # Launchers end all ranks when the first of an interrupted run has ended, and rank 0 may still be
        # writing what only it writes.
        dist.barrier()
    except RuntimeError as error:
        # NCCL has a class of its own for this; gloo's errors begin with the place in its source.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostContactError(
            f"rank {rank()} has lost contact with another rank, which has ended; what that one says is why"
        ) from error
    finally:
        gloo_group.cache_clear()
        dist.destroy_process_group()


def carries(device: torch.device) -> bool:
    """Return True if the ranks exchange tensors on `device` directly: over NCCL, or on the CPU gloo.

    `dist.get_backend` does not say: a process group may have a backend per device.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    return f"{device.type}:{backend}" in dist.get_backend_config()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all ranks, the same on each; `x` itself where there is one."""
    return _all_reduce(x, dist.ReduceOp.SUM)


def all_reduce_max(x: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks, the same on each; `x` itself where there is one."""
    return _all_reduce(x, dist.ReduceOp.MAX)


def _all_reduce(x: Tensor, operation: Any) -> Tensor:
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, operation)
    return x


def all_reduce_mean(x_N: Tensor) -> Tensor:
    """Return the mean of the elements of all ranks, however many each has; the same on each."""
    total, number = all_reduce_sum(torch.stack([x_N.sum(), torch.ones_like(x_N).sum()]))
    return total / number


@functools.cache
def gloo_group() -> Any:
    """Return a gloo group of all ranks beside that of the run, for work in the background."""
    return dist.new_group(backend="gloo")


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank 0 go first, so that the others find what it makes."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    try:
        yield
    finally:
        if world_size() > 1 and rank() == 0:
            dist.barrier()


def all_gather_object(thing: Any) -> list[Any]:
    """All-gather a picklable object."""
    if world_size() == 1:
        return [thing]
    things = [None] * world_size()
    dist.all_gather_object(things, thing)
    return things


def broadcast_object(thing: Any) -> Any:
    """Broadcast a picklable object from rank 0."""
    if world_size() == 1:
        return thing
    things = [thing]
    dist.broadcast_object_list(things, src=0)
    return things[0]


def rank_zero_result(work: Callable[[], T]) -> T:
    """Return on every rank what `work` returns on rank 0; a `FacerecError` is raised on every rank, too."""
    answer: tuple[Any, FacerecError | None] = None, None
    if rank() == 0:
        try:
            answer = work(), None
        except FacerecError as error:
            answer = None, error
    result, failure = broadcast_object(answer)
    if failure is not None:
        raise failure
    return result


def all_gather(x_B: Tensor, sizes: Sizes = None) -> Tensor:
    """All-gather samples (B, …) into (G, …), ordered by rank; no gradient."""
    if world_size() == 1:
        return x_B
    sizes = sizes or [len(x_B)] * world_size()
    padded = _padded(x_B, max(sizes))
    out = padded.new_empty(len(sizes) * len(padded), *padded.shape[1:])
    _all_gather(out, padded)
    if len(set(sizes)) == 1:
        return out
    return torch.cat([part[:size] for part, size in zip(out.split(max(sizes)), sizes, strict=True)])


def reduce_scatter(x_G: Tensor, sizes: Sizes = None) -> Tensor:
    """Sum `x_G` over all ranks and return this rank's samples (B, …): the counterpart of `all_gather`."""
    if world_size() == 1:
        return x_G
    sizes = sizes or [len(x_G) // world_size()] * world_size()
    parts = (
        x_G if len(set(sizes)) == 1 else torch.cat([_padded(p, max(sizes)) for p in x_G.split(list(sizes))])
    )
    out = x_G.new_empty(max(sizes), *x_G.shape[1:])
    _reduce_scatter(out, parts.contiguous())
    return out[: sizes[rank()]]


def local_samples(x_G: Tensor, sizes: Sizes = None) -> Tensor:
    """Return this rank's samples (B, …) of those of all ranks (G, …)."""
    if world_size() == 1:
        return x_G
    sizes = sizes or [len(x_G) // world_size()] * world_size()
    return x_G[sum(sizes[: rank()]) :][: sizes[rank()]]


def local(x: Any) -> Any:
    """Return the rows of a sharded tensor (a DTensor) that this rank holds; anything else as it is."""
    return x.detach().to_local() if hasattr(x, "to_local") else x


def own_part(parameter: Any) -> Any:
    """Return the rows of a sharded parameter that this rank holds as a parameter of the same memory, always
    the same one; a parameter that is not sharded as it is."""
    if not hasattr(parameter, "to_local"):
        return parameter
    if not hasattr(parameter, "own_part"):
        parameter.own_part = nn.Parameter(local(parameter), requires_grad=parameter.requires_grad)
    return parameter.own_part


class Gather(torch.autograd.Function):
    """`all_gather` whose gradients flow back to each rank, by `reduce_scatter`."""

    @staticmethod
    def forward(ctx: Any, x_B: Tensor, sizes: Sizes) -> Tensor:
        ctx.sizes = sizes
        return all_gather(x_B, sizes)

    @staticmethod
    def backward(ctx: Any, grad_G: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(grad_G, ctx.sizes), None


def _padded(x_B: Tensor, size: int) -> Tensor:
    """Pad with rows of zeros up to `size`; the collectives take equal parts only."""
    x_B = x_B.contiguous()
    return x_B if len(x_B) == size else torch.cat([x_B, x_B.new_zeros(size - len(x_B), *x_B.shape[1:])])
