"""Open a model file of any kind. What it is, its content says; nothing in it is run unless that is allowed.

Checkpoints and state dicts are read by `facerec.torch_file`, safetensors and ONNX files hold numbers and a
graph of known operators, which onnxruntime runs in a process with limits (`onnx_network`). The network that a
checkpoint names is built on the meta device first, and takes memory only when names and sizes are those of
its weights. A TorchScript file is a program: its interpreter knows no Python, but operators that read and
write files, and may use them as early as while it is loaded. So it is opened on request only.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from facerec import checkpoint, sharded_checkpoint
from facerec.backbones import create_backbone
from facerec.backbones.base import BACKBONES, Backbone
from facerec.backbones.weights import (
    draft,
    load_weights,
    misfit,
    of_network,
    read_safetensors,
    recognise,
    tensors_in,
)
from facerec.device import resolve_device
from facerec.errors import CheckpointError, ConfigError
from facerec.evaluation.model import Input, Model
from facerec.inert import are_settings
from facerec.registry import build
from facerec.torch_file import kind_of_archive

log = logging.getLogger("facerec.evaluation")

Kind = Literal["checkpoint", "safetensors", "onnx", "torchscript", "torch.export"]
Settings = Mapping[str, Any]

# How the published weights of a lineage want their pictures, where that is not what `Input` says by default:
# AdaFace's (github.com/mk-minchul/AdaFace) and sphereface_pytorch's, which both read pictures with OpenCV.
LINEAGES: Mapping[str, Settings] = {
    "adaface_": {"channels": "bgr"},
    "sphere": {"channels": "bgr", "std": 128.0},
}

_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")
# The tags of the fields that may follow ir_version, which writers of ONNX put first.
_ONNX_TAGS = bytes([0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42])


class _Wish(NamedTuple):
    """What was asked for: which file, where to run it, and what to put in place of what it says."""

    path: Path
    device: torch.device
    input: Settings
    backbone: Settings  # with a name, or empty
    allow_code: bool

    @property
    def where(self) -> str:
        return f"ckpt={self.path}"


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    input: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    **overrides: Any,
) -> Model:
    """Open any model: a checkpoint of a training run, weights of a known backbone, ONNX or TorchScript.

    What a file is, its content decides and not its name. A checkpoint brings
    its backbone and its preprocessing; so does what `facerec-export` wrote. Of other files the log says which
    preprocessing was taken for them. Nothing in a file is run, unless it is TorchScript and `allow_code`.

    Args:
        path: a checkpoint; a state dict (``.pth``, bare or wrapped, or safetensors); an ONNX network (extra
            ``onnx``); a TorchScript program.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        input: settings that replace the file's preprocessing; null values do not.
        backbone: for a state dict, the settings of `create_backbone` (name, embedding_size, …); None: the
            known backbone that its entries fit.
        allow_code: whether a TorchScript program may be run. It can read and write files as you can, so say
            True only to files whose origin you trust.
        overrides: as `input`, by keyword: ``load_model(path, channels="bgr")``.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: no such file, none of these kinds, or weights that do not fit.
        ConfigError: for an unknown or out-of-range setting.
        UserError: a package that is needed to read the file is missing.
    """
    given = {key: value for key, value in {**(input or {}), **overrides}.items() if value is not None}
    checked = build(Input, "input", given)
    given = {key: getattr(checked, key) for key in given}
    return _opened(Path(path), device=device, input=given, backbone=backbone, allow_code=allow_code)


def _opened(
    path: Path, *, device: str, input: Settings, backbone: Settings | None, allow_code: bool
) -> Model:
    """The work of `load_model`; nulls in `backbone` stand for its defaults."""
    chosen = {key: value for key, value in (backbone or {}).items() if value is not None}
    for key in chosen.keys() - {"input_size"} if "name" not in chosen else ():
        raise ConfigError(f"backbone.{key}", chosen[key], "needs backbone=NAME, the network that it is of")
    kind = "checkpoint" if sharded_checkpoint.is_one(path) else kind_of(path)
    place = resolve_device(device, key="device", own=False)
    wish = _Wish(path, place, input, chosen if "name" in chosen else {}, allow_code)
    if wish.backbone and kind in ("onnx", "torchscript"):
        raise ConfigError("backbone", chosen["name"], f"{path} brings its own network; leave it out")
    match kind:
        case "safetensors":
            return _open_safetensors(wish)
        case "onnx":
            return _open_onnx(wish)
        case "torchscript":
            return _open_torchscript(wish)
        case "torch.export":
            raise CheckpointError(
                f"{wish.where}: is a program of torch.export; export it to ONNX, or save its state_dict()"
            )
    state = sharded_checkpoint.load_backbone(path) if path.is_dir() else checkpoint.load(path)
    ours = "config" in state and ("backbone" in state or "input" in state)
    return _open_checkpoint(wish, state) if ours else _open_weights(wish, state)


def kind_of(path: Path) -> Kind:
    """What a file is, by its content; ``checkpoint`` is also what none of the other kinds is.

    Raises:
        CheckpointError: there is no such file.
    """
    checkpoint.require_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start.startswith(b"PK\x03\x04"):
            return kind_of_archive(path)
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"ckpt={path}: cannot be read: {error.strerror}") from error
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    is_onnx = start[:1] == b"\x08" and 1 <= start[1] <= 64 and start[2] in _ONNX_TAGS if size > 2 else False
    return "onnx" if is_onnx or path.suffix.lower() == ".onnx" else "checkpoint"


# Checkpoints of ours --------------------------------------------------------------------------------------


def _open_checkpoint(wish: _Wish, state: Mapping[str, Any]) -> Model:
    config = _part(wish, state, "config")
    settings = _part(wish, config, "backbone")
    missing = [key for key in ("backbone", "input") if not isinstance(state.get(key), Mapping)]
    if missing or not isinstance(settings.get("name"), str):
        raise CheckpointError(
            f"{wish.where}: has no {' and no '.join(missing or ['config.backbone.name'])}, so it is not a "
            "checkpoint of a training run; give its checkpoints/best.pt or checkpoints/last.pt"
        )
    if wish.backbone and wish.backbone["name"] != settings["name"]:
        raise ConfigError(
            "backbone", wish.backbone["name"], f"the checkpoint says {settings['name']}; leave it out"
        )
    # Strictly, except that the prefixes of wrappers (DistributedDataParallel, torch.compile) are dropped.
    weights = {_WRAPPED.sub("", str(key)): value for key, value in state["backbone"].items()}
    try:
        # By reference, only for names and sizes: no memory is taken before those fit.
        drafted = draft(settings, weights, wish.where)
        drafted.load_state_dict(weights, assign=True)
        if any(map(torch.is_complex, drafted.state_dict().values())):
            raise RuntimeError("they are complex numbers")  # whose imaginary parts would be dropped
        backbone = create_backbone(**of_network(settings))
        backbone.load_state_dict(weights)
    except ConfigError as error:
        raise CheckpointError(f"{wish.where}: its backbone cannot be built here: {error}") from error
    except RuntimeError as error:
        wrong = "".join(filter(str.isprintable, " ".join(str(error).split())))[:300]
        raise CheckpointError(
            f"{wish.where}: the weights do not fit the backbone {settings['name']} it names: {wrong}"
        ) from None
    prepared = _input(wish, _part(wish, state, "input"))
    if prepared.shape != backbone.input_size:
        raise CheckpointError(f"{wish.where}: input.size={prepared.size}, not {backbone.input_size}")
    return Model(
        _ready(backbone, wish),
        prepared,
        step=checkpoint.count(state, "step", wish.where),
        epoch=checkpoint.count(state, "epoch", wish.where),
        path=wish.path,
        identities=_names(state.get("classes")),
        config=config,
    )


def _input(wish: _Wish, said: Settings) -> Input:
    """The preprocessing a file says, or what was given (and checked) instead; `CheckpointError` else."""
    try:
        return build(Input, "input", {**said, **wish.input})
    except ConfigError as error:
        raise CheckpointError(f"{wish.where}: its preprocessing cannot be used: {error}") from error


def _part(wish: _Wish, container: Any, key: str) -> dict[str, Any]:
    """The settings called `key` in `container`; empty where there are none.

    Raises:
        CheckpointError: there are values that no settings have, nested or long ones among them.
    """
    part = container.get(key) if isinstance(container, Mapping) else None
    if not isinstance(part, Mapping):
        return {}
    if not are_settings(part):
        raise CheckpointError(f"{wish.where}: its {key} holds other things than settings")
    return dict(part)


def _names(classes: Any) -> Sequence[str]:
    """The names among the labels of the training set; packs have numbers only."""
    return [one for one in classes if isinstance(one, str)] if isinstance(classes, list | tuple) else ()


def _ready(backbone: nn.Module, wish: _Wish) -> nn.Module:
    backbone.eval().to(wish.device)
    return backbone.to(memory_format=torch.channels_last)


# Weights of known backbones -------------------------------------------------------------------------------


def _open_safetensors(wish: _Wish) -> Model:
    weights, metadata = read_safetensors(wish.path, wish.where)
    said = _metadata(wish, metadata, "backbone")
    if wish.backbone or not isinstance(said.get("name"), str):
        return _open_weights(wish, weights, metadata)
    return _open_weights(wish._replace(backbone=said), weights, metadata)


def _open_weights(wish: _Wish, content: Mapping[Any, Any], metadata: Settings | None = None) -> Model:
    """A state dict, bare or wrapped, of the backbone that was asked for or that it fits."""
    weights = tensors_in(content, wish.where)
    settings, backbone = _backbone_for(weights, wish)
    load_weights(backbone, weights, wish.where)
    size = backbone.input_size[0] if len({*backbone.input_size}) == 1 else list(backbone.input_size)
    lineage = next((LINEAGES[name] for name in LINEAGES if settings["name"].startswith(name)), {})
    return _finished(
        wish,
        _ready(backbone, wish),
        f"weights of {settings['name']}",
        backbone.embedding_size,
        {"size": size},
        metadata or {},
        lineage,
        config={"backbone": settings},
    )


def _backbone_for(weights: Mapping[str, torch.Tensor], wish: _Wish) -> tuple[dict[str, Any], Backbone]:
    """The settings and the network: the file decides on sizes that its entries show.

    A picture size that was asked for is taken where the weights fit a network for it.
    """
    name = wish.backbone.get("name")
    if name is not None:
        BACKBONES.builder(name)  # a wrong name is said before anything else
    known = recognise(weights, None if name is None else [name]) if name != "timm" else None
    if name is None and known is None:
        raise CheckpointError(
            f"{wish.where}: its weights fit none of the known backbones at their usual settings; give "
            f"backbone=NAME (and backbone.embedding_size=…) if it is one of {', '.join(BACKBONES.names())}; "
            "else export the network to ONNX"
        )
    if name is None:
        log.info("%s: recognised as weights of backbone=%s", wish.where, (known or {})["name"])
    base = {**(of_network(wish.backbone) if name is not None else {}), **(known or {})}
    attempts = [base]
    if "size" in wish.input:
        attempts.insert(0, {**base, "input_size": wish.input["size"]})
    elif known is not None and "input_size" in wish.backbone:
        attempts.insert(0, {**base, "input_size": wish.backbone["input_size"]})
    for settings in attempts[:-1]:
        try:
            if not misfit(draft(settings, weights, wish.where), weights):
                return settings, create_backbone(**settings)
        except ConfigError:  # a size the network cannot have; the last attempt is without it
            continue
    backbone = draft(base, weights, wish.where)
    if misfit(backbone, weights):
        load_weights(backbone, weights, wish.where)  # says so
    wanted = wish.input.get("size")
    if wanted is not None and Input(size=wanted).shape != backbone.input_size:
        shape = "×".join(map(str, backbone.input_size))
        raise ConfigError("input.size", wanted, f"the weights in {wish.path} are for {shape} pictures")
    return base, create_backbone(**base)


# Networks that bring their own graph ----------------------------------------------------------------------


def _open_onnx(wish: _Wish) -> Model:
    from facerec.evaluation.onnx_network import OnnxNetwork

    network = OnnxNetwork(wish.path, wish.device)
    said = _metadata(wish, network.metadata, "input")
    shape = _own_size(wish, said, network.size)
    size = network.probe(shape)
    return _finished(wish, network, "an ONNX network", size, {"size": _short(shape)}, network.metadata)


def _open_torchscript(wish: _Wish) -> Model:
    from facerec.evaluation.networks import ScriptedNetwork

    if not wish.allow_code:
        raise CheckpointError(
            f"{wish.where}: is TorchScript, a program that can read and write files as you can; if you trust "
            "where it comes from, allow_code=true (--allow-code) runs it; else ask for ONNX or safetensors"
        )
    network = ScriptedNetwork(wish.path, wish.device)
    shape = _own_size(wish, {}, None)
    size = network.probe(shape)
    return _finished(wish, network, "a TorchScript program", size, {"size": _short(shape)}, {})


def _own_size(wish: _Wish, said: Settings, fixed: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width for a network: what it is made for, else what was asked for, else the usual size."""
    wanted = wish.input.get("size")
    if fixed is not None:
        if wanted is not None and Input(size=wanted).shape != fixed:
            raise ConfigError("input.size", wanted, f"the network takes {fixed[0]}×{fixed[1]} pictures alone")
        return fixed
    size = wanted if wanted is not None else said.get("size", Input.size)
    height, width = _input(wish, {"size": size}).shape
    return height, width


def _short(shape: tuple[int, int]) -> int | list[int]:
    return shape[0] if shape[0] == shape[1] else list(shape)


# What all files from elsewhere have in common -------------------------------------------------------------


def _finished(
    wish: _Wish,
    network: nn.Module,
    what: str,
    embedding_size: int,
    size: Settings,
    metadata: Settings,
    lineage: Settings | None = None,
    config: Settings | None = None,
) -> Model:
    """The model with its preprocessing: that of its metadata, else the usual one; then what was given."""
    said = _metadata(wish, metadata, "input")
    prepared = _input(wish, {**(lineage or {}), **said, **size})
    step = metadata.get("facerec.step", "")
    log.info("%s: %s, %d numbers a face", wish.where, what, embedding_size)
    if not said:
        asked = {"mean", "std", "channels"} - wish.input.keys()
        origin = "as usual for it" if lineage else "the usual one"
        log.info(
            "%s: does not say how pictures are prepared; taken: %s%s",
            wish.where,
            prepared,
            f" ({origin}; input.{', input.'.join(sorted(asked))} change it)" if asked else "",
        )
    return Model(
        network,
        prepared,
        step=int(step) if step.isascii() and step.isdecimal() and len(step) < 19 else None,
        path=wish.path,
        config=config,
        knows_input=bool(said) and "facerec.guessed" not in metadata,
    )


def _metadata(wish: _Wish, metadata: Settings, name: str) -> dict[str, Any]:
    """What `facerec-export` wrote into a file under a name; empty where it did not make it."""
    text = metadata.get(f"facerec.{name}")
    try:
        value = {} if text is None else json.loads(text)
        if not are_settings(value):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{wish.where}: its metadata facerec.{name} is damaged; export it again"
        ) from error
    return value if isinstance(value, dict) else {}
