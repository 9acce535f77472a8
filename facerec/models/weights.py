"""Weights of any lineage: what a model file is and holds, all of it loaded into a backbone or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from facerec.backbones.base import Backbone, create_backbone, on_meta_device
from facerec.errors import CheckpointError, ConfigError, counted
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint, hub, structure
from facerec.models.lineages import of_our_eps, usual_preprocessing
from facerec.models.recognition import compare, few, hint, network_settings, typed
from facerec.pickles.stand_ins import Inert, are_settings, shown
from facerec.pickles.torch_file import ARCHIVE, archive_names
from facerec.registry import build

log = logging.getLogger(__name__)

Kind = Literal["checkpoint", "safetensors", "hub", "onnx", "torchscript", "torch.export"]
T = TypeVar("T")

_ONNX_TAGS: Final = bytes([0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42])  # of fields that may follow ir_version
# Keys under which programs keep the network. Averaged weights are published, where a file has both.
_WRAPPERS: Final = (
    "backbone",
    "state_dict_backbone",
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "net_state_dict",
)
_AVERAGED: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_MISFIT: Final = "does not fit the backbone"
_PACKED: Final = "._packed_params._packed_params"  # weight and bias of a layer that torch quantised to int8


# Files -----------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> Kind:
    """Return what a model file is, a state dict being a checkpoint: by its first bytes, else by its name.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    if checkpoint.is_folder(path):
        return "checkpoint"
    if hub.is_folder(path):
        return "hub"
    checkpoint.require_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
        names = archive_names(path) if start.startswith(ARCHIVE) else frozenset()
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"ckpt={path}: cannot be read: {error.strerror}") from error
    if start.startswith(ARCHIVE):
        program: Kind = "torch.export" if "archive_format" in names else "checkpoint"
        return "torchscript" if "constants.pkl" in names else program
    # safetensors begins with the length of its header, ONNX with ir_version and one of the fields after it.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    if len(start) > 2 and start[0] == 8 and 1 <= start[1] <= 64 and start[2] in _ONNX_TAGS:
        return "onnx"
    named: dict[str, Kind] = {".safetensors": "safetensors", ".onnx": "onnx"}
    return named.get(path.suffix.lower(), "checkpoint")


def read(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """Return what a checkpoint, a state dict, safetensors or a hub folder holds, and its metadata.

    Raises:
        CheckpointError: no such file, a damaged one, or safetensors is not installed.
    """
    metadata = hub.metadata_of(path) if hub.is_folder(path) else {}
    path = hub.weights_in(path)
    if kind_of(path) == "safetensors":
        content, own = read_safetensors(path)
        return content, own | metadata
    return checkpoint.load(path), metadata


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors in a safetensors file, and the words in its metadata; raises `CheckpointError`."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        hint = "pip install 'facerec[safetensors]'"
        raise CheckpointError(f"ckpt={path}: reading it needs safetensors; {hint}") from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"ckpt={path}: not a safetensors file, or a damaged one ({error})") from error


def built(builder: Callable[..., T], section: str, recorded: Mapping[str, Any], where: str) -> T:
    """Build what the settings in a file describe; raises `CheckpointError`, which begins with `where`."""
    try:
        return build(builder, section, dict(recorded))
    except ConfigError as error:
        what = "preprocessing" if section == "input" else section
        raise CheckpointError(f"{where}: its {what} cannot be used: {error}") from error


def tensors_in(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Return the tensors in what a checkpoint holds, out of their wrappers, those of batch norms for our eps.

    Of several mappings with tensors, one under a known key is taken, else the one with most.
    """

    def preference(keys: tuple[str, ...]) -> tuple[bool, bool, int]:
        last = keys[-1] if keys else ""
        return last in _AVERAGED, last in _WRAPPERS, _count_tensors(found[keys])

    found = {keys: mapping for keys, mapping in _mappings(content) if _count_tensors(mapping)}
    if not found:
        held = few(
            f"{key} (of {value.name})" if isinstance(value, Inert) else key for key, value in content.items()
        )
        raise CheckpointError(
            f"{where}: has no weights; a state dict is wanted, this holds {held or 'nothing'}"
        )
    keys = max(found, key=preference)
    if keys:
        log.info("%s: the weights under %s are taken", where, shown(".".join(keys)))
    return of_our_eps(_unpacked(found[keys]))


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


# Load ------------------------------------------------------------------------------------------------------


def load_pretrained(backbone: nn.Module, path: Path | str, input: Preprocessing | None = None) -> list[str]:
    """Load the weights in `path` into `backbone`, all of them or none.

    Accepted are checkpoints of facerec, state dicts of the published layouts (bare or wrapped, behind any
    prefix such as ``module.``), safetensors files and ONNX networks of the backbone's structure. Weights of
    other modules are left out, and logged.

    Args:
        input: how the images will be prepared; a warning says where they were prepared otherwise for the
            weights, by what the file records or as is usual for its lineage or its network.

    Returns:
        The names of batch norms that were folded into the layer before: they only add its bias, and their
        running statistics say nothing (`onnx_weights.unfold_batch_norms`).

    Raises:
        CheckpointError: no such file, unreadable, or entries that are missing, left over or of another shape.
        UserError: a package that is needed to read the file is missing.
    """
    where, path = f"backbone.pretrained={path}", Path(path)
    file = hub.weights_in(path)
    try:
        if kind_of(file) == "onnx" and isinstance(backbone, Backbone):
            from facerec.models.onnx_weights import load_onnx

            absorbed, known = load_onnx(backbone, file, where)
            _warn_of_other_input(input, known, "", where)
            return absorbed
        content, metadata = read(path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"ckpt={file}", where, 1)) from error
    ours = content.get("input") if "config" in content else None
    recorded = dict(ours) if isinstance(ours, Mapping) and are_settings(ours) else {}
    recorded = recorded or hub.recorded(metadata, "input", where)
    weights = tensors_in(content, where)
    fit = _require_fit(backbone, weights, where)
    _load(backbone, fit, where)
    lineage, usual = usual_preprocessing(weights)
    usual = recorded or {**getattr(backbone, "preprocessing", {}), **usual}
    _warn_of_other_input(input, usual, lineage, where)
    return fit.absorbed


def _warn_of_other_input(
    input: Preprocessing | None, usual: Mapping[str, Any], lineage: str, where: str
) -> None:
    wanted = built(Preprocessing, "input", usual, where)
    known = {key: getattr(wanted, key) for key in ("channels", "mean", "std") if key in usual}
    if input is not None and (other := {k: v for k, v in known.items() if v != getattr(input, k)}):
        words = " ".join(typed(f"input.{key}", value) for key, value in other.items())
        log.warning("%s: weights%s, from images prepared otherwise; say %s", where, lineage, words)


def fitted_backbone(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    misfit: str = _MISFIT,
) -> Backbone:
    """Create the backbone of `settings` with `weights`; it takes memory only when names and sizes fit.

    Args:
        settings: of `create_backbone`; others are ignored.

    Raises:
        CheckpointError: entries are missing, left over or of another shape (`where: misfit`), or the settings
            are of no backbone that could be.
        ConfigError: a setting is unknown or out of range.
    """
    fit = _require_fit(_drafted(settings, weights, where), weights, where, misfit)
    backbone = create_backbone(**network_settings(settings))
    _load(backbone, fit, where)
    return backbone


def _load(backbone: nn.Module, fit: structure.Found, where: str) -> None:
    state = backbone.state_dict() | fit.weights
    backbone.load_state_dict(state)
    left_out = f"; left out: {few(fit.left_out)}" if fit.left_out else ""
    log.info("%s: %d entries loaded%s%s", where, len(state), fit.note, left_out)


def _require_fit(
    backbone: nn.Module,
    weights: Mapping[str, Tensor],
    where: str,
    misfit: str = _MISFIT,
) -> structure.Found:
    expected = structure.shapes_of(backbone.state_dict())
    match = compare(weights, expected, getattr(backbone, "foreign", ()))
    if match.fits:
        taken = {name: weights[match.prefix + name] for name in expected if match.prefix + name in weights}
        taken |= {name: torch.full(expected[name], float(name.endswith("weight"))) for name in match.unscaled}
        note = f"; not in the file, so 1 and 0: {few(match.unscaled)}" if match.unscaled else ""
        return structure.Found(taken, [], match.outside, note)
    found = structure.matches(weights, backbone)
    if len(found) == 1:
        note = ", whose names differ, by their order and shapes, which fit in one way only"
        return found[0]._replace(note=note)
    if found:
        raise CheckpointError(
            f"{where}: its names are none that is known, and its entries fit the backbone in {len(found)} or "
            "more ways by order and shapes; export the network to ONNX, whose outputs tell which is right"
        )
    raise CheckpointError(f"{where}: {misfit}: {match}; it {hint(weights, where)}")


def _drafted(settings: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> Backbone:
    """A backbone on the meta device, given up when it grows larger than any that the weights are for."""
    left = 8 * len(weights) + 2000  # modules and parameters

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError(
                f"{where}: its {counted(len(weights), 'entry')} are too few for "
                f"backbone={settings['name']} with the settings that it names"
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
