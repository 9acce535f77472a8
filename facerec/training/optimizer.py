"""The optimizer over its parameter groups, and the learning rate of the moment."""

from __future__ import annotations

import torch
from torch import nn

from facerec.errors import ConfigError
from facerec.training.parameters import parameter_groups
from facerec.training.settings import OptimizerSettings


def make_optimizer(
    settings: OptimizerSettings, modules: dict[str, nn.Module], lr_scales: dict[str, float]
) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of `modules` (see `parameter_groups`).

    Raises:
        ConfigError: where nothing is left to train.
    """
    groups = parameter_groups(
        modules, weight_decay=settings.weight_decay, decay_all=settings.decay_all, lr_scales=lr_scales
    )
    if not groups:
        raise ConfigError("backbone.frozen", True, "leaves nothing to train with a head without weights")
    if settings.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), fused=True
        )
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, each times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def describe(optimizer: torch.optim.Optimizer) -> str:
    """One line for the log: the optimizer, its rate, and its groups with their sizes."""
    defaults = optimizer.defaults
    known = {name: defaults[name] for name in ("lr", "momentum", "nesterov", "betas") if defaults.get(name)}
    groups = "; ".join(
        f"{group['name']}: {sum(p.numel() for p in group['params']):,} parameters in {len(group['params'])} "
        f"tensors, weight decay {group['weight_decay']:g}"
        for group in optimizer.param_groups
    )
    return f"{type(optimizer).__name__} {known} ({groups})"
