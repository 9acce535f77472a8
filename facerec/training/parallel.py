"""What several processes add to a step: gradients averaged and measured together, one decision to stop."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facerec import distributed
from facerec.errors import ConfigError, FacerecError, UserError
from facerec.heads import Head

# The name that torch 2.14 gives to the setting; earlier versions know it by the other.
_SETTINGS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _SETTINGS else "broadcast_buffers"


def spread(backbone: nn.Module, device: torch.device, *, compile: bool = False) -> nn.Module:
    """The backbone as the trainer calls it: compiled if wanted, its gradients averaged over the processes.

    Its buffers are left alone: each process's running statistics follow its own batches, and those of the
    first process count (see `share_buffers`). So a step has no other traffic than its gradients.
    """
    embed: Any = torch.compile(backbone) if compile else backbone
    trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if distributed.world_size() == 1 or not trained:
        return embed
    return DistributedDataParallel(
        embed,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=False,
        **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
    )


def synchronise_batch_norm(backbone: nn.Module, device: torch.device) -> None:
    """Make batch norm inside `backbone` one over the batches of all processes together.

    Raises:
        ConfigError: on anything but CUDA, where torch has no such layer.
    """
    if distributed.world_size() == 1:
        return
    if device.type != "cuda":
        raise ConfigError("trainer.sync_batch_norm", True, f"works on CUDA only, and this run is on {device}")
    nn.SyncBatchNorm.convert_sync_batchnorm(backbone)


def without_exchange(embed: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """Where gradients of several batches are added up, only the last backward pass sends them."""
    if last or not isinstance(embed, DistributedDataParallel):
        return contextlib.nullcontext()
    return embed.no_sync()


def share_buffers(backbone: nn.Module) -> None:
    """Give every process the first one's running statistics, before these are used or saved."""
    if distributed.world_size() > 1:
        for buffer in backbone.buffers():
            dist.broadcast(buffer, src=0)


def seed_of(seed: int) -> int:
    """A seed of this process's own, so that dropout differs between them; the first keeps `seed`."""
    return (seed + 1_000_003 * distributed.rank()) % 2**63


def make_scaler(device: torch.device, *, enabled: bool) -> torch.amp.GradScaler:
    """Scales the loss of fp16; elsewhere it is disabled and passes everything through.

    Where classes are shared out, one process may see an overflow in its rows that the others do not: all have
    to leave out that step.
    """
    if enabled and distributed.world_size() > 1:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # slow to load

        return ShardedGradScaler(device.type, enabled=True)
    return torch.amp.GradScaler(device.type, enabled=enabled)


def agreed(number: signal.Signals | None) -> signal.Signals | None:
    """The signal that any process has got, in all of them; every process calls this at the same step."""
    largest = int(distributed.all_reduce_max(torch.tensor(number or 0)))
    return signal.Signals(largest) if largest else None


def require_alike(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` where a rank was started with another value than rank 0; every rank calls this.

    Args:
        settings: values of the run by their dotted names.
    """
    first, *others = distributed.all_gather_object(dict(settings))
    for rank, theirs in enumerate(others, 1):
        for name in {**first, **theirs}:
            one, other = first.get(name), theirs.get(name)
            if one != other:
                hint = "all ranks of a run need the same settings and the same data"
                raise UserError(f"{name}: is {one} on rank 0 and {other} on rank {rank}; {hint}")


def check_replicas(step: int, backbone: nn.Module, head: Head, optimizer: torch.optim.Optimizer) -> None:
    """Raise `FacerecError` unless all ranks hold the same to the bit, by their hashes; every rank calls this.

    Compared are the parameters that every rank has, the optimizer's state of them, and the state of the head.
    The backbone's running statistics are each rank's own until they are used (see `share_buffers`).
    """
    parameters = {f"backbone.{name}": p for name, p in backbone.named_parameters()}
    parameters |= {
        f"head.{name}": p for name, p in head.named_parameters() if name not in head.sharded_parameters
    }
    held: dict[str, Tensor] = {**parameters, **{f"head.{name}": b for name, b in head.named_buffers()}}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            held[f"{kind} of {name}"] = torch.as_tensor(value)
    first, *others = distributed.all_gather_object({name: _hash(value) for name, value in held.items()})
    for rank, theirs in enumerate(others, 1):
        for name, value in first.items():
            if theirs.get(name) != value:
                raise FacerecError(
                    f"step {step}: {name} of rank {rank} is not that of rank 0 (trainer.check_replicas); "
                    "look for other hardware, other libraries or a fault there, and go on from a checkpoint, "
                    "which makes all ranks alike"
                )


class Gradients:
    """The gradients of a step, of which each process holds those of the backbone and of its own classes.

    Args:
        backbone: whose gradients `DistributedDataParallel` has averaged.
        head: whose gradients are averaged here, but for its shared-out rows, which come out right by
            themselves.
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        rows = [p for name, p in head.named_parameters() if name in head.sharded_parameters]
        other = [p for name, p in head.named_parameters() if name not in head.sharded_parameters]
        self._rows = [p for p in rows if p.requires_grad]
        self._head = [p for p in other if p.requires_grad]
        self._name = type(backbone).__name__
        self._named = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        self._backbone = list(self._named.values())

    def lay_out(self, embed: nn.Module, forward: Callable[[Tensor], Tensor], image_BCHW: Tensor) -> None:
        """Have torch lay out the gradients now as it will for all steps.

        `DistributedDataParallel` does so after its first backward pass, and where a gradient lies decides in
        which order more than two ranks' values are added up: the first step after a resume would differ in
        its last bits from the same step of a run in one part. Nothing else is changed by it.

        Args:
            embed: from `spread`.
            forward: calls it as a step does.
            image_BCHW: any images, of a batch's shape.

        Raises:
            ConfigError: a parameter of the backbone takes no part in the loss, which leaves
                `DistributedDataParallel` waiting for its gradient, and those of its neighbours not averaged.
        """
        if not isinstance(embed, DistributedDataParallel):
            return
        before = [buffer.clone() for buffer in embed.buffers()]
        devices = [image_BCHW.device] if image_BCHW.is_cuda else []
        with torch.random.fork_rng(devices):
            forward(image_BCHW).float().sum().backward()
        idle = [name for name, parameter in self._named.items() if parameter.grad is None]
        if idle:
            hint = f"its {idle[0]} takes no part in the loss, so several processes cannot average it"
            raise ConfigError("backbone", self._name, f"{hint}; train it in one process")
        embed.zero_grad(set_to_none=True)
        for buffer, value in zip(embed.buffers(), before, strict=True):
            buffer.copy_(value)

    def settle(self, batches: int) -> None:
        """Make the gradients of `batches` batches what the optimizer takes: summed up, and averaged over the
        processes where no one else has done so.
        """
        for parameter in (*self._head, *self._rows):
            if parameter.grad is not None and parameter.grad.is_sparse:
                # A single batch has every row once. Autograd does not keep the mark that says so, and without
                # it torch would look, which the host would have to wait for.
                gradient = parameter.grad._coalesced_(True) if batches == 1 else parameter.grad.coalesce()
                parameter.grad = gradient
        if distributed.world_size() > 1:
            for gradient in _of(self._head):
                dist.all_reduce(gradient)
                gradient /= distributed.world_size()

    def norm(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of all gradients together and the mean of the processes' losses, the same in each."""
        alike = nn.utils.get_total_norm(_of([*self._backbone, *self._head]))
        rows = nn.utils.get_total_norm(_of(self._rows))
        if distributed.world_size() == 1:
            return torch.hypot(alike, rows) if self._rows else alike.to(loss.device), loss
        squares, total = distributed.all_reduce_sum(
            torch.stack((rows.to(loss.device).square(), loss / distributed.world_size()))
        )
        return (alike.to(loss.device).square() + squares).sqrt(), total

    def clip(self, norm: Tensor, largest: float) -> None:
        """Shorten all gradients together to the norm `largest`, where theirs is greater."""
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(_of([*self._backbone, *self._head, *self._rows]), factor)


def _hash(x: Tensor) -> bytes:
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients there are; of a sparse one, the rows it has."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return [g._values() if g.is_sparse else g for g in gradients]
