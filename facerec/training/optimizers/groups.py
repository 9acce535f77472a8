"""Parameter groups by weight decay and rate: weights decay, batch norm, biases and PReLU slopes do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from facerec import distributed

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


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
    modules: dict[str, nn.Module],
    *,
    weight_decay: float,
    decay_all: bool = False,
    decay_biases: bool = False,
    lr_scales: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return the optimizer groups of several modules; two, or two for each learning rate where they differ.

    Args:
        modules: by name, e.g. ``{"backbone": …, "head": …}``.
        lr_scales: factors by pattern (``backbone``, ``backbone.body.*``), see `matches`; of several that
            match the last counts, and 1 where none does.
        decay_biases: weight decay on all parameters but those of norms.

    Returns:
        Groups with ``params`` (of sharded ones the rows of this rank), their ``names`` (``head.weight``) for
        checkpoints, ``weight_decay``, ``lr_scale`` and a ``name`` for the log; none is empty.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for module_name, module in modules.items():
        decayed, plain = split_by_decay(module, decay_biases)
        for parameters, decay in ((decayed, weight_decay), (plain, weight_decay if decay_all else 0.0)):
            for own_name, parameter in parameters.items():
                name = f"{module_name}.{own_name}"
                scale = next((lr_scales[one] for one in reversed([*lr_scales]) if matches(name, [one])), 1.0)
                shown = ("decay" if decay else "no decay") + (f", lr × {scale:g}" if scale != 1 else "")
                new = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale, "name": shown}
                group = groups.setdefault((scale, decay), new)
                group["params"].append(distributed.own_part(parameter))
                group["names"].append(name)
    return list(groups.values())
