"""Optimizers by name, one per module, over the parameter groups of a run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from facerec.errors import ConfigError, counted, settings_text
from facerec.registry import Registry
from facerec.settings import Applied, NotNegative, Positive, check_ranges
from facerec.training.optimizers.groups import parameter_groups

__all__ = ["OPTIMIZERS", "OptimizerSettings", "describe", "make_optimizer", "set_learning_rate", "uncompiled"]

OPTIMIZERS = Registry("optimizer", "facerec.training.optimizers")

T = TypeVar("T", bound=torch.optim.Optimizer)


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of every optimizer; a subclass adds its own and defines `build`.

    Args:
        lr: learning rate at factor 1 of the schedule.
        weight_decay: of weights; never of batch norm, biases and PReLU slopes unless `decay_all`.
        decay_all: weight decay on everything.
        decay_biases: weight decay on biases and PReLU slopes too, on everything but norms.

    Raises:
        ConfigError: for a value out of range.
    """

    lr: Applied[Positive] = 0.1
    weight_decay: NotNegative = 5e-4
    decay_all: bool = False
    decay_biases: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameter groups."""
        raise NotImplementedError


def make_optimizer(
    settings: OptimizerSettings, modules: dict[str, nn.Module], lr_scales: dict[str, float]
) -> torch.optim.Optimizer:
    """Make the optimizer of the trainable parameters of `modules` (see `parameter_groups`).

    Raises:
        ConfigError: where nothing is left to train.
    """
    groups = parameter_groups(
        modules,
        weight_decay=settings.weight_decay,
        decay_all=settings.decay_all,
        decay_biases=settings.decay_biases,
        lr_scales=lr_scales,
    )
    if not groups:
        raise ConfigError("backbone.frozen", True, "leaves nothing to train with a head without weights")
    return settings.build(groups)


def uncompiled(kind: type[T]) -> type[T]:
    """Return a class of optimizers without the wrappers that prepare it for `torch.compile`.

    At the first call they load the compiler, a second of a start; a run compiles the backbone alone.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[T], type(kind.__name__, (kind,), methods))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the rate of every group, each times its own `lr_scale`; return the rate without that."""
    lr: float = optimizer.defaults["lr"] * factor
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def describe(optimizer: torch.optim.Optimizer) -> str:
    """Return one line for the log: the optimizer, its rate, and its groups with their sizes."""
    defaults = optimizer.defaults
    known = {name: defaults[name] for name in ("lr", "momentum", "nesterov", "betas") if defaults.get(name)}
    groups = "; ".join(
        f"{group['name']}: {sum(p.numel() for p in group['params']):,} parameters in "
        f"{counted(len(group['params']), 'tensor')}, weight decay {group['weight_decay']:g}"
        for group in optimizer.param_groups
    )
    return f"{type(optimizer).__name__}: {settings_text(known)} ({groups})"


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state of each parameter by its name."""
    named = [
        (name, p)
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    ]
    return {name: dict(optimizer.state[p]) for name, p in named if optimizer.state.get(p)}
