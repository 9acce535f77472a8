"""Data parallelism of a step: gradients averaged and clipped over all ranks, one decision to stop."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facerec import distributed
from facerec.backbones.base import Backbone
from facerec.errors import ConfigError, FacerecError, UserError
from facerec.heads import Head

_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = next(  # torch 2.14 has renamed it
    name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _PARAMETERS
)


def shard_backbone(backbone: Backbone, device: torch.device, *, bf16_gradients: bool = False) -> None:
    """Leave each rank its rows of all parameters of `backbone` (FSDP2), which are gathered block by block.

    The blocks are its `recomputable_parts`, what lies outside of them one more. Gradients arrive as the rows
    of their average, rounded to bf16 on the way or not; buffers stay as they are on each rank. Zhao et al.
    2023, "PyTorch FSDP", arXiv 2304.11277.

    Raises:
        ConfigError: a parameter that cannot be divided into rows.
    """
    from torch.distributed.device_mesh import init_device_mesh  # slow to load, as is what follows
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    backbone.to(memory_format=torch.contiguous_format)  # FSDP takes no others; images stay channels-last
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if bf16_gradients else None)
    blocks = dict.fromkeys(module for module, _ in backbone.recomputable_parts() if module is not backbone)
    try:
        for module in (*blocks, backbone):
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=module is not backbone)
    except ValueError as error:  # a parameter without dimensions
        reason = str(error).splitlines()[0]
        raise ConfigError("trainer.fsdp", True, f"torch cannot shard this backbone: {reason}") from error


def is_sharded(backbone: nn.Module) -> bool:
    """Return True after `shard_backbone`."""
    return hasattr(backbone, "unshard")


@contextlib.contextmanager
def gathered(backbone: Any) -> Iterator[None]:
    """Give each rank all of a sharded backbone, to embed as many batches as it likes; all ranks call this."""
    if not is_sharded(backbone):
        yield
        return
    modules = [module for module in backbone.modules() if is_sharded(module)]
    backbone.set_reshard_after_forward(False)
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not backbone, recurse=False)


def wrap_ddp(
    backbone: nn.Module, device: torch.device, *, compile: bool | str = False, bf16_gradients: bool = False
) -> nn.Module:
    """Compile the backbone if wanted, and have its gradients averaged over the ranks, rounded to bf16 or not.

    A backbone that is sharded already stays as it is.

    Its buffers are left alone: each rank's running statistics follow its own batches, and those of rank 0
    count (see `broadcast_buffers`). So a step has no other traffic than its gradients.
    """
    embed: Any = backbone
    if isinstance(compile, str):  # whose CUDA graphs are of one batch size each
        embed = torch.compile(backbone, mode=compile, dynamic=False)
    elif compile:
        embed = torch.compile(backbone)
    trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if distributed.world_size() == 1 or not trained or is_sharded(backbone):
        return embed
    wrapped = DistributedDataParallel(
        embed,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=False,
        **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
    )
    if bf16_gradients:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def synchronise_batch_norm(backbone: nn.Module, device: torch.device) -> None:
    """Compute the batch norms of `backbone` over the batches of all ranks.

    Raises:
        ConfigError: on anything but CUDA, where torch has no such layer.
    """
    if distributed.world_size() == 1:
        return
    if device.type != "cuda":
        raise ConfigError("trainer.sync_batch_norm", True, f"works on CUDA only, and this run is on {device}")
    nn.SyncBatchNorm.convert_sync_batchnorm(backbone)


def no_sync(embed: nn.Module, *, unless: bool) -> contextlib.AbstractContextManager[object]:
    """Accumulate gradients without averaging them, `unless` this is the last batch of a step."""
    if unless or not isinstance(embed, DistributedDataParallel):
        return contextlib.nullcontext()
    return embed.no_sync()


def broadcast_buffers(backbone: nn.Module) -> None:
    """Give all ranks the running statistics of rank 0, before these are used or saved."""
    if distributed.world_size() > 1:
        for buffer in backbone.buffers():
            dist.broadcast(buffer, src=0)


def rank_seed(seed: int) -> int:
    """Return a seed of this rank's own, so that dropout differs between ranks; rank 0 keeps `seed`."""
    return (seed + 1_000_003 * distributed.rank()) % 2**63


def make_scaler(device: torch.device, *, enabled: bool) -> torch.amp.GradScaler:
    """Return the loss scaler of fp16; elsewhere it is disabled and passes everything through.

    A rank may see an overflow in its shard of the classes that others do not: all must skip that step.
    """
    if enabled and distributed.world_size() > 1:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # slow to load

        return ShardedGradScaler(device.type, enabled=True)
    return torch.amp.GradScaler(device.type, enabled=enabled)


def agree_on_signal(own: signal.Signals | None) -> signal.Signals | None:
    """Return the signal that any rank has got, on every rank; all ranks call this at the same step."""
    largest = int(distributed.all_reduce_max(torch.tensor(own or 0)))
    return signal.Signals(largest) if largest else None


def require_same_on_all_ranks(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` unless every rank has the settings of rank 0, by dotted name; all ranks call this."""
    for name, one, rank, other in _differences(settings):
        hint = "all ranks of a run need the same settings and the same data"
        raise UserError(f"{name}: is {one} on rank 0 and {other} on rank {rank}; {hint}")


def check_replicas(step: int, backbone: nn.Module, head: Head, optimizer: torch.optim.Optimizer) -> None:
    """Raise `FacerecError` unless all ranks hold the same to the bit, by their hashes; all ranks call this.

    Compared are the replicated parameters, the optimizer's state of them, and the head's buffers. The
    backbone's running statistics are each rank's own until they are used (see `broadcast_buffers`).
    """
    _, replicated = _sharded_and_replicated(head)
    parameters = {f"backbone.{name}": p for name, p in backbone.named_parameters()}
    parameters |= {f"head.{name}": p for name, p in replicated.items()}
    held: dict[str, Tensor] = {**parameters, **{f"head.{name}": b for name, b in head.named_buffers()}}
    for name, parameter in parameters.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            held[f"{kind} of {name}"] = torch.as_tensor(value)
    for name, _, rank, _ in _differences({name: _hash(value) for name, value in held.items()}):
        raise FacerecError(
            f"step {step}: {name} of rank {rank} is not that of rank 0 (trainer.check_replicas); "
            "look for other hardware, other libraries or a fault there, and go on from a checkpoint, which "
            "makes all ranks alike"
        )


def _differences(held: Mapping[str, Any]) -> Iterator[tuple[str, Any, int, Any]]:
    """Yield name, value of rank 0, rank and its value for all that differs; all ranks call this."""
    first, *others = distributed.all_gather_object(dict(held))
    for rank, theirs in enumerate(others, 1):
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                yield name, first.get(name), rank, theirs.get(name)


class Gradients:
    """The gradients of a step on one rank.

    Those of the backbone are averaged by `DistributedDataParallel`, or of a sharded one by FSDP, those of
    replicated parameters of the head by `reduce`; those of a shard of the class weights are complete as they
    are.
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        sharded, replicated = _sharded_and_replicated(head)
        self._backbone_name = type(backbone).__name__
        self._whole = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        self._backbone = {name: distributed.own_part(p) for name, p in self._whole.items()}
        self._fsdp = is_sharded(backbone)
        self._sharded = [p for p in sharded.values() if p.requires_grad]
        self._replicated = [p for p in replicated.values() if p.requires_grad]

    def warm_up_ddp(
        self,
        embed: nn.Module,
        forward: Callable[[Tensor], Tensor],
        shape_BCHW: tuple[int, ...],
        device: torch.device,
    ) -> None:
        """Run one backward pass through `DistributedDataParallel`, which then fixes its gradient buckets.

        Else it does so after the first step, and the buckets decide in which order the values of more than
        two ranks are added up: the first step after a resume would differ in its last bits from the same step
        of a run in one part. Nothing else is changed.

        Raises:
            ConfigError: a parameter of the backbone takes no part in the loss, so that
                `DistributedDataParallel` waits for its gradient and leaves its neighbours' not averaged.
        """
        if not isinstance(embed, DistributedDataParallel):
            return
        before = [buffer.clone() for buffer in embed.buffers()]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            image_BCHW = torch.zeros(shape_BCHW, device=device).to(memory_format=torch.channels_last)
            forward(image_BCHW).float().sum().backward()
        idle = [name for name, parameter in self._backbone.items() if parameter.grad is None]
        if idle:
            hint = f"its {idle[0]} takes no part in the loss, so several processes cannot average it"
            raise ConfigError("backbone", self._backbone_name, f"{hint}; train it in one process")
        embed.zero_grad(set_to_none=True)
        for buffer, value in zip(embed.buffers(), before, strict=True):
            buffer.copy_(value)

    def reduce(self, batches: int) -> None:
        """Coalesce sparse gradients, and average those that `DistributedDataParallel` does not."""
        for name, parameter in self._whole.items() if self._fsdp else ():
            self._backbone[name].grad, parameter.grad = distributed.local(parameter.grad), None
        for parameter in (*self._replicated, *self._sharded):
            if parameter.grad is not None and parameter.grad.is_sparse:
                # A single batch has every row once. Autograd does not keep the mark that says so, and without
                # it torch would look, which the host would have to wait for.
                gradient = parameter.grad._coalesced_(True) if batches == 1 else parameter.grad.coalesce()
                parameter.grad = gradient
        if distributed.world_size() > 1:
            for gradient in _values(self._replicated):
                dist.all_reduce(gradient)
                gradient /= distributed.world_size()

    def norm(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of all gradients and the mean loss over all ranks, the same on each."""
        of_replicas, of_shards = [*self._replicated], [*self._sharded]
        (of_shards if self._fsdp else of_replicas).extend(self._backbone.values())
        replicated, sharded = (nn.utils.get_total_norm(_values(ps)) for ps in (of_replicas, of_shards))
        if distributed.world_size() == 1:
            return torch.hypot(replicated, sharded) if self._sharded else replicated.to(loss.device), loss
        squares, total = distributed.all_reduce_sum(
            torch.stack((sharded.to(loss.device).square(), loss / distributed.world_size()))
        )
        return (replicated.to(loss.device).square() + squares).sqrt(), total

    def clip(self, norm: Tensor, largest: float, part: str = "all") -> None:
        """Scale all gradients, whose norm is `norm`, or those of the ``backbone``, down to `largest`."""
        gradients = _values(self._backbone.values())
        if part == "backbone":
            norm = nn.utils.get_total_norm(gradients)
            norm = distributed.all_reduce_sum(norm.square()).sqrt() if self._fsdp else norm
        else:
            gradients += _values([*self._replicated, *self._sharded])
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))


def _sharded_and_replicated(head: Head) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    parameters = dict(head.named_parameters())
    sharded = {name: parameters.pop(name) for name in list(parameters) if name in head.sharded_parameters}
    return sharded, parameters


def _hash(x: Tensor) -> bytes:
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients there are; of a sparse one, the rows it has."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return [g._values() if g.is_sparse else g for g in gradients]
