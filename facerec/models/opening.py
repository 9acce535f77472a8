"""Open a model file of any kind. Its content decides the kind; nothing in it is run.

Checkpoints and state dicts are read by `pickles.torch_file`; safetensors and ONNX files hold numbers and a
graph of known operators, which onnxruntime runs in a process with limits (`onnx_network`). The network a
checkpoint names takes memory only when its weights fit (`weights.fitted_backbone`). A TorchScript file is a
program whose operators read and write files, as early as while it is loaded: it is opened on request only.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from facerec import plugins
from facerec.backbones.base import BACKBONES, Backbone
from facerec.device import resolve_device
from facerec.errors import CheckpointError, ConfigError
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint, hub
from facerec.models.lineages import usual_preprocessing
from facerec.models.model import Model, Threshold
from facerec.models.recognition import nearest, network_settings, recognise
from facerec.models.weights import built, fitted_backbone, kind_of, read, tensors_in
from facerec.pickles.stand_ins import are_settings, shown
from facerec.registry import build

log = logging.getLogger("facerec.evaluation")

Settings = Mapping[str, Any]


class Request(NamedTuple):
    """A file to open, the device to run it on, and settings that replace its own."""

    path: Path
    device: torch.device
    input: Settings
    backbone: Settings  # with a name, or empty
    weights: Literal["raw", "ema"] = "raw"

    @property
    def where(self) -> str:
        return f"ckpt={self.path}"


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    input: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
    weights: Literal["raw", "ema"] = "raw",
    allow_code: bool = False,
    **overrides: Any,
) -> Model:
    """Open any model: a checkpoint of a training run, weights of a known backbone, ONNX or TorchScript.

    For files of other programs than facerec's the log names the preprocessing that is used.

    Args:
        path: a checkpoint; a state dict (``.pth``, bare or wrapped, or safetensors); an ONNX network (extra
            ``onnx``); a TorchScript program; a folder of the Hugging Face hub (ours or CVLface's), or the
            repository ``owner/name`` itself (extra ``hub``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        input: settings that replace the file's preprocessing; null values do not.
        backbone: for a state dict, the settings of `create_backbone` (name, embedding_size, …); None: the
            known backbone that its entries fit. Of an ONNX network it is rebuilt; None: onnxruntime runs it.
        weights: of a checkpoint of a run with `trainer.ema`: ``ema`` takes the moving average.
        allow_code: run a TorchScript program, which can read and write files as you can; nothing in other
            files is run.
        overrides: as `input`, by keyword: ``load_model(path, channels="bgr")``.

    Raises:
        CheckpointError: no such file, none of these kinds, or weights that do not fit.
        ConfigError: for an unknown or out-of-range setting.
        UserError: a package that is needed to read the file is missing.
    """
    path = hub.located(path)
    given = {key: value for key, value in {**(input or {}), **overrides}.items() if value is not None}
    checked = build(Preprocessing, "input", given)
    chosen = {key: value for key, value in (backbone or {}).items() if value is not None}
    if "name" not in chosen:
        for key in chosen.keys() - {"input_size"}:
            raise ConfigError(f"backbone.{key}", chosen[key], "needs backbone=NAME, the network it is of")
        chosen = {}
    kind = kind_of(path)
    if chosen and kind == "torchscript":
        raise ConfigError("backbone", chosen["name"], f"{path} brings its own network; leave it out")
    where = resolve_device(device, key="device", own=False)
    request = Request(path, where, {key: getattr(checked, key) for key in given}, chosen, weights)
    match kind:
        case "onnx":
            model = _open_onnx(request)
        case "torchscript":
            model = _open_torchscript(request, allow_code)
        case "torch.export":
            hint = "export it to ONNX, or save its state_dict()"
            raise CheckpointError(f"{request.where}: is a program of torch.export; {hint}")
        case _:
            model = _open_weights(request)
    if model.weights != weights:
        raise ConfigError("weights", weights, f"{path} has no averaged weights (trainer.ema); leave it out")
    return model


# Checkpoints of ours --------------------------------------------------------------------------------------


def _open_checkpoint(request: Request, state: Mapping[Any, Any]) -> Model:
    config = _settings_in(request, state, "config")
    settings = _settings_in(request, config, "backbone")
    missing = [key for key in ("backbone", "input") if not isinstance(state.get(key), Mapping)]
    if missing or not isinstance(settings.get("name"), str):
        raise CheckpointError(
            f"{request.where}: has no {' and no '.join(missing or ['config.backbone.name'])}, so it is not a "
            "checkpoint of a training run; give its checkpoints/best.pt or checkpoints/last.pt"
        )
    _require_known(request, settings["name"], config.get("plugins"))
    if request.backbone and request.backbone["name"] != settings["name"]:
        raise ConfigError(
            "backbone", request.backbone["name"], f"the checkpoint says {settings['name']}; leave it out"
        )
    averages = state.get("ema") if request.weights == "ema" else None
    given = {**state["backbone"], **(averages if isinstance(averages, Mapping) else {})}.items()
    weights = {str(name): value for name, value in given if isinstance(value, Tensor)}
    misfit = f"the weights do not fit the backbone {settings['name']} it names"
    try:
        backbone = fitted_backbone(settings, weights, request.where, misfit)
    except ConfigError as error:
        raise CheckpointError(f"{request.where}: its backbone cannot be built here: {error}") from error
    prepared = _preprocessing(request, _settings_in(request, state, "input"))
    if prepared.shape != backbone.input_size:
        raise CheckpointError(f"{request.where}: input.size={prepared.size}, not {backbone.input_size}")
    return Model(
        _ready(backbone, request),
        prepared,
        step=checkpoint.counter(state, "step", request.where),
        epoch=checkpoint.counter(state, "epoch", request.where),
        path=request.path,
        identities=_names(state.get("classes")),
        config=config,
        weights="ema" if averages else "raw",
    )


def _require_known(request: Request, name: str, needed: Any = None) -> None:
    """Raise `CheckpointError` unless the backbone that a file names is there; `needed`: its plugins."""
    if name not in (known := BACKBONES.names()):
        unknown = f"its backbone {shown(name)} is none of {', '.join(known)}"
        raise CheckpointError(f"{request.where}: {unknown}; {plugins.hint(needed)}")


def _preprocessing(request: Request, recorded: Settings) -> Preprocessing:
    """The preprocessing recorded in a file, with the given (and checked) settings in place of its own."""
    return built(Preprocessing, "input", {**recorded, **request.input}, request.where)


def _settings_in(request: Request, container: Settings, key: str) -> dict[str, Any]:
    """The settings called `key`; empty where there are none, `CheckpointError` for other values."""
    part = container.get(key)
    if not isinstance(part, Mapping):
        return {}
    if not are_settings(part):
        raise CheckpointError(f"{request.where}: its {key} holds other things than settings")
    return dict(part)


def _names(classes: Any) -> Sequence[str]:
    """The names among the labels of the training set; packs have numbers only."""
    return [one for one in classes if isinstance(one, str)] if isinstance(classes, list | tuple) else ()


def _ready(backbone: nn.Module, request: Request) -> nn.Module:
    backbone.eval().to(request.device)
    return backbone.to(memory_format=torch.channels_last)


# Weights of known backbones -------------------------------------------------------------------------------


def _open_weights(request: Request) -> Model:
    """Open weights of the backbone that was asked for, that their metadata name, or that they fit."""
    content, metadata = read(request.path)
    request = request._replace(path=hub.weights_in(request.path))
    if "config" in content and ("backbone" in content or "input" in content):
        return _open_checkpoint(request, content)
    recorded = hub.recorded(metadata, "backbone", request.where)
    if not request.backbone and isinstance(recorded.get("name"), str):
        _require_known(request, recorded["name"])
        request = request._replace(backbone=recorded)
    weights = tensors_in(content, request.where)
    settings, backbone = _backbone_for(weights, request)
    lineage, usual = usual_preprocessing(weights)
    made_for = {**backbone.preprocessing, **usual, "size": _short(backbone.input_size)}
    what = f"weights of {settings['name']}{lineage}"
    network, size = _ready(backbone, request), backbone.embedding_size
    return _finished(request, network, what, size, made_for, metadata, {"backbone": settings})


def _backbone_for(weights: Mapping[str, Tensor], request: Request) -> tuple[dict[str, Any], Backbone]:
    """The settings and the network of weights, of the sizes that their entries show.

    An image size that was asked for is used if the weights fit a network for it.
    """
    known = recognise(weights, [request.backbone["name"]] if request.backbone else None)
    settings = (network_settings(request.backbone) if request.backbone else {}) | (known or {})
    if not settings:
        raise CheckpointError(
            f"{request.where}: its weights fit none of the known backbones at their usual settings"
            f"{nearest(weights)}; give backbone=NAME (and its settings) if it is one of them, else export "
            "the network to ONNX"
        )
    if not request.backbone:
        log.info("%s: recognised as weights of backbone=%s", request.where, settings["name"])
    wanted = request.input.get("size")
    size = wanted if wanted is not None else request.backbone.get("input_size") if known else None
    if size is not None:
        with contextlib.suppress(ConfigError, CheckpointError):  # the weights are for another size
            asked = {**settings, "input_size": size}
            return asked, fitted_backbone(asked, weights, request.where)
    backbone = fitted_backbone(settings, weights, request.where)
    if wanted is not None and Preprocessing(size=wanted).shape != backbone.input_size:
        shape = "×".join(map(str, backbone.input_size))
        raise ConfigError("input.size", wanted, f"the weights in {request.path} are for {shape} images")
    return settings, backbone


# Networks that bring their own graph ----------------------------------------------------------------------


def _open_onnx(request: Request) -> Model:
    from facerec.models.onnx_network import OnnxNetwork
    from facerec.models.onnx_weights import backbone_of, settings_for

    network = OnnxNetwork(request.path, request.device)
    recorded = hub.recorded(network.metadata, "input", request.where)
    shape = _own_size(request, recorded, network.size)
    size = network.probe(shape)
    made_for = {**network.outside, "size": _short(shape)}
    if not request.backbone:
        inside = "" if network.inside is None else " that prepares images inside"
        return _finished(request, network, f"an ONNX network{inside}", size, made_for, network.metadata)
    config, backbone = backbone_of(network, dict(request.backbone))
    what = f"an ONNX network, rebuilt as {config['backbone']['name']}"
    made_for, metadata = settings_for(network, backbone, made_for, recorded)
    return _finished(request, _ready(backbone, request), what, size, made_for, metadata, config)


def _open_torchscript(request: Request, allow_code: bool) -> Model:
    from facerec.models.networks import ScriptedNetwork

    if not allow_code:
        raise CheckpointError(
            f"{request.where}: is TorchScript, a program that can read and write files as you can; if you "
            "trust where it comes from, allow_code=true (--allow-code) runs it; else ask for ONNX or "
            "safetensors"
        )
    network = ScriptedNetwork(request.path, request.device)
    shape = _own_size(request, {}, None)
    size = network.probe(shape)
    return _finished(request, network, "a TorchScript program", size, {"size": _short(shape)}, {})


def _own_size(request: Request, recorded: Settings, fixed: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width for a network: its own, else the size that was asked for, else the usual one."""
    wanted = request.input.get("size")
    if fixed is not None:
        if wanted is not None and Preprocessing(size=wanted).shape != fixed:
            raise ConfigError("input.size", wanted, f"the network takes {fixed[0]}×{fixed[1]} images alone")
        return fixed
    size = wanted if wanted is not None else recorded.get("size", Preprocessing.size)
    height, width = _preprocessing(request, {"size": size}).shape
    return height, width


def _short(shape: tuple[int, int]) -> int | list[int]:
    """One number for a square."""
    return shape[0] if shape[0] == shape[1] else list(shape)


# Common to all files from elsewhere -------------------------------------------------------------


def _finished(
    request: Request,
    network: nn.Module,
    what: str,
    embedding_size: int,
    made_for: Settings,
    metadata: Mapping[str, str],
    config: Settings | None = None,
) -> Model:
    """The model with its preprocessing: of its metadata, else the usual one, and the given settings."""
    recorded = hub.recorded(metadata, "input", request.where)
    prepared = _preprocessing(request, {**made_for, **recorded, "size": made_for["size"]})
    step = metadata.get("facerec.step", "")
    threshold = hub.recorded(metadata, "threshold", request.where)
    log.info("%s: %s, %d numbers per face", request.where, what, embedding_size)
    if not recorded:
        asked = {"mean", "std", "channels"} - request.input.keys()
        origin = "as usual for it" if made_for.keys() - {"size"} else "the usual one"
        log.info(
            "%s: does not say how images are prepared; taken: %s%s",
            request.where,
            prepared,
            f" ({origin}; input.{', input.'.join(sorted(asked))} change it)" if asked else "",
        )
    return Model(
        network,
        prepared,
        step=int(step) if step.isascii() and step.isdecimal() and len(step) < 19 else None,
        path=request.path,
        config=config or {},
        knows_input=bool(recorded) and "facerec.guessed" not in metadata,
        threshold=built(Threshold, "threshold", threshold, request.where) if threshold else None,
    )
