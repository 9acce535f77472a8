"""Weights of any lineage: find them in what a file holds, load all of them into a backbone or none."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from facerec.backbones.base import Backbone, create_backbone, on_meta_device
from facerec.errors import CheckpointError, counted
from facerec.models import structure
from facerec.models.lineages import in_our_names, wrapper_rank
from facerec.models.recognition import compare, few, network_settings, recognise
from facerec.pickles.stand_ins import Inert, shown

log = logging.getLogger(__name__)


_ONNX_TAGS = bytes([0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42])  # of the fields that may follow ir_version


def tensors_in(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """The tensors by our names in what a checkpoint holds, out of their wrappers.

    Of several mappings with tensors, one under a wrapper of `LINEAGES` is taken, else the one with most.
    """
    found = {keys: mapping for keys, mapping in _mappings(content) if _count_tensors(mapping)}
    if not found:
        held = few(
            f"{key} (of {value.name})" if isinstance(value, Inert) else key for key, value in content.items()
        )
        raise CheckpointError(
            f"{where}: has no weights; a state dict is wanted, this holds {held or 'nothing'}"
        )
    keys = max(found, key=lambda keys: (wrapper_rank(keys[-1:]), _count_tensors(found[keys])))
    if keys:
        log.info("%s: the weights under %s are taken", where, shown(".".join(keys)))
    return in_our_names(_unpacked(found[keys]))


_PACKED = "._packed_params._packed_params"  # weight and bias of a layer that torch quantised to int8


def _unpacked(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a mapping, those of quantised layers under the names that they had before."""
    result: dict[str, Tensor] = {}
    quantised = {name.removesuffix(_PACKED) for name in mapping if name.endswith(_PACKED)}
    for name, value in mapping.items():
        layer, _, what = name.rpartition(".")
        if name.endswith(_PACKED) and isinstance(value, tuple):
            roles = zip(("weight", "bias"), value, strict=False)
            layer = name.removesuffix(_PACKED)
            result |= {f"{layer}.{role}": one for role, one in roles if isinstance(one, Tensor)}
        elif isinstance(value, Tensor) and not (layer in quantised and what in ("scale", "zero_point")):
            result[name] = value
    if quantised:
        log.info("int8: the numbers of %s are taken as float32", counted(len(quantised), "layer"))
    return result


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """`content` and the mappings in it, with their keys: names only, as numbers are an optimizer's."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while todo:
        keys, mapping = todo.pop(0)
        if id(mapping) not in seen and all(isinstance(key, str) for key in mapping):
            seen.add(id(mapping))
            yield keys, mapping
            todo += [((*keys, key), value) for key, value in mapping.items() if isinstance(value, Mapping)]


def _count_tensors(mapping: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in mapping.values())


def is_safetensors(path: Path, start: bytes, _: frozenset[str]) -> bool:
    """Recognise a safetensors file by its name, or by the length of its header, with which it starts."""
    header = int.from_bytes(start[:8], "little") if start[8:9] == b"{" else None
    return path.suffix.lower() == ".safetensors" or (header is not None and header <= path.stat().st_size - 8)


def is_onnx(path: Path, start: bytes, _: frozenset[str]) -> bool:
    """Recognise an ONNX file by its name, or by its first fields: ir_version, then one of those after it."""
    versioned = len(start) > 2 and start[0] == 8 and 1 <= start[1] <= 64 and start[2] in _ONNX_TAGS
    return versioned or path.suffix.lower() == ".onnx"


def read_safetensors(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file, and the words in its metadata; errors begin with `where`."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{where}: reading it needs safetensors; pip install 'facerec[safetensors]'"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{where}: not a safetensors file, or a damaged one ({error})") from error


# Load ------------------------------------------------------------------------------------------------------


def load_weights(
    backbone: nn.Module,
    weights: Mapping[str, Tensor],
    where: str,
    misfit: str = "does not fit the backbone",
) -> list[str]:
    """Load `weights` into `backbone`, which stays as it is unless they fit.

    Returns:
        The names of batch norms that were folded into the layer before: they only add its bias.

    Raises:
        CheckpointError: entries are missing, left over or of another shape; it begins with `where: misfit`.
    """
    fit = _require_fit(backbone, weights, where, misfit)
    state = backbone.state_dict()
    state |= {name: fit.weights[name] for name in state if name in fit.weights}
    backbone.load_state_dict(state)
    left_out = f"; left out: {few(fit.left_out)}" if fit.left_out else ""
    log.info("%s: %d entries loaded%s%s", where, len(state), fit.note, left_out)
    return fit.absorbed


def fitted_backbone(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    misfit: str = "does not fit the backbone",
) -> Backbone:
    """Create the backbone of `settings` with `weights`; it takes memory only when names and sizes fit.

    Args:
        settings: of `create_backbone`; others are ignored.

    Raises:
        CheckpointError: as `load_weights` does, or the settings are of no backbone that could be.
        ConfigError: a setting is unknown or out of range.
    """
    fit = _require_fit(_drafted(settings, weights, where), weights, where, misfit)
    backbone = create_backbone(**network_settings(settings))
    backbone.load_state_dict(backbone.state_dict() | fit.weights)
    left_out = f"; left out: {few(fit.left_out)}" if fit.left_out else ""
    log.info("%s: %d entries loaded%s%s", where, len(backbone.state_dict()), fit.note, left_out)
    return backbone


class _Fit(NamedTuple):
    """Weights under the names of a backbone, and what was done for that."""

    weights: dict[str, Tensor]
    left_out: list[str]
    absorbed: list[str] = []  # noqa: RUF012 - of a tuple
    note: str = ""


def _require_fit(backbone: nn.Module, weights: Mapping[str, Tensor], where: str, misfit: str) -> _Fit:
    expected = structure.shapes_of(backbone.state_dict())
    match = compare(weights, expected, getattr(backbone, "foreign", ()))
    if match.fits:
        taken = {name: weights[match.prefix + name] for name in expected if match.prefix + name in weights}
        scales = {name: torch.full(expected[name], float(name.endswith("weight"))) for name in match.unscaled}
        note = f"; not in the file, so 1 and 0: {few(match.unscaled)}" if scales else ""
        return _Fit(taken | scales, match.outside, note=note)
    found = structure.matches(weights, backbone)
    if len(found) == 1:
        note = ", whose names differ, by their order and shapes, which fit in one way only"
        return _Fit(found[0].weights, found[0].left_out, found[0].absorbed, note)
    if found:
        raise CheckpointError(
            f"{where}: its names are none that is known, and its entries fit the backbone in {len(found)} or "
            "more ways by order and shapes; export the network to ONNX, whose outputs tell which is right"
        )
    raise CheckpointError(f"{where}: {misfit}: {match}{_hint(weights, where)}")


def _drafted(settings: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> Backbone:
    """A backbone on the meta device, given up when it grows larger than any that the weights are for."""
    left = 8 * len(weights) + 2000  # modules and parameters

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError(
                f"{where}: its {counted(len(weights), 'entry')} are too few for "
                f"backbone={settings['name']} with the "
                "settings that it names"
            )

    register = nn.modules.module
    hooks = [
        register.register_module_module_registration_hook(count),
        register.register_module_parameter_registration_hook(count),
    ]
    try:
        with on_meta_device():
            return create_backbone(**network_settings(settings))
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # of sizes that overflow
        raise CheckpointError(
            f"{where}: backbone={settings['name']} cannot be built with the settings that it names "
            f"({type(error).__name__})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _hint(weights: Mapping[str, Tensor], where: str) -> str:
    known = recognise(weights)
    if known is None:
        return "; it is none of the known backbones"
    settings = {f"backbone.{key}": value for key, value in known.items()}
    settings = {"backbone": settings.pop("backbone.name"), **settings}
    if where.startswith("backbone."):  # of a training run, whose images have that size, too
        settings["data.size"] = settings.pop("backbone.input_size")
    return f"; it fits {' '.join(_typed(f'{key}={value}') for key, value in settings.items())}"


def _typed(setting: str) -> str:
    return shlex.quote(setting.replace(", ", ","))
