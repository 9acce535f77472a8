"""Optimizers by name, one per module, over the parameter groups of a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

import torch
from torch import nn

from facerec import distributed
from facerec.errors import ConfigError, counted, settings_text
from facerec.registry import Registry
from facerec.settings import Applied, NotNegative, Positive, check_ranges

OPTIMIZERS = Registry("optimizer", "facerec.training.optimizers")

T = TypeVar("T", bound=torch.optim.Optimizer)

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


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


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return True where a pattern (``body.*``) is that of a parameter, or of a module it lies in."""
    return any(fnmatchcase(name, one) or fnmatchcase(name, f"{one}.*") for one in patterns)


def split_by_decay(
    module: nn.Module, biases: bool = False
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the trainable parameters of `module` by name: with weight decay, and without.

    A module may except more of its parameters by a method ``no_weight_decay() -> set[str]``. With `biases`,
    biases and PReLU slopes decay as well, those of norms excepted.
    """
    excepted: set[str] = getattr(module, "no_weight_decay", set)()
    decayed: dict[str, nn.Parameter] = {}
    plain: dict[str, nn.Parameter] = {}
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(prefix=prefix, recurse=False):
            if parameter.requires_grad:
                slope = isinstance(part, nn.PReLU) or name.endswith("bias")
                never = isinstance(part, _NORMS) or name in excepted or (slope and not biases)
                (plain if never else decayed)[name] = parameter
    return decayed, plain


def parameter_groups(
    settings: OptimizerSettings, modules: Mapping[str, nn.Module], lr_scales: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the optimizer groups of several modules; two, or two for each learning rate where they differ.

    Args:
        settings: what decays.
        modules: by name, e.g. ``{"backbone": …, "head": …}``.
        lr_scales: factors by pattern (``backbone``, ``backbone.body.*``), see `matches`; of several that
            match the last counts, and 1 where none does.

    Returns:
        Groups with ``params`` (of sharded ones the rows of this rank), their ``names`` (``head.weight``) for
        checkpoints, ``weight_decay``, ``lr_scale`` and a ``name`` for the log; none is empty.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for module_name, module in modules.items():
        decayed, plain = split_by_decay(module, settings.decay_biases)
        weight_decay = settings.weight_decay
        for parameters, decay in ((decayed, weight_decay), (plain, settings.decay_all * weight_decay)):
            for own_name, parameter in parameters.items():
                name = f"{module_name}.{own_name}"
                scale = next((lr_scales[one] for one in reversed([*lr_scales]) if matches(name, [one])), 1.0)
                shown = ("decay" if decay else "no decay") + (f", lr × {scale:g}" if scale != 1 else "")
                new = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale, "name": shown}
                group = groups.setdefault((scale, decay), new)
                group["params"].append(distributed.own_part(parameter))
                group["names"].append(name)
    return list(groups.values())


def make_optimizer(
    settings: OptimizerSettings, modules: Mapping[str, nn.Module], lr_scales: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Make the optimizer of the trainable parameters of `modules` (see `parameter_groups`).

    Raises:
        ConfigError: where nothing is left to train.
    """
    groups = parameter_groups(settings, modules, lr_scales)
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
