"""Parameter groups by weight decay: weights get it, batch norm, biases and PReLU slopes do not."""

from __future__ import annotations

from typing import Any

from torch import nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


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
    lr_scales: dict[str, float],
) -> list[dict[str, Any]]:
    """Return the optimizer groups of several modules; two, or two for each learning rate where they differ.

    Args:
        modules: by name, e.g. ``{"backbone": …, "head": …}``; so are `lr_scales`, 1 where not given.
        decay_biases: weight decay on all parameters but those of norms.

    Returns:
        Groups with ``params``, their ``names`` (``head.weight``) for checkpoints, ``weight_decay``,
        ``lr_scale`` and a ``name`` for the log; none is empty.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for module_name, module in modules.items():
        scale = lr_scales.get(module_name, 1.0)
        decayed, plain = split_by_decay(module, decay_biases)
        for parameters, decay in ((decayed, weight_decay), (plain, weight_decay if decay_all else 0.0)):
            if not parameters:
                continue
            name = ("decay" if decay else "no decay") + (f", lr × {scale:g}" if scale != 1 else "")
            new = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale, "name": name}
            group = groups.setdefault((scale, decay), new)
            group["params"].extend(parameters.values())
            group["names"].extend(f"{module_name}.{parameter}" for parameter in parameters)
    return list(groups.values())
