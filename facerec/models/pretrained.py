"""Weights to start from, out of any file that holds some."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from facerec.backbones.base import Backbone
from facerec.errors import CheckpointError, ConfigError
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint, hub
from facerec.models.lineages import usual_preprocessing
from facerec.models.opening import kind_of
from facerec.models.weights import load_weights, read_safetensors, tensors_in
from facerec.pickles.stand_ins import are_settings
from facerec.registry import build

log = logging.getLogger(__name__)

_PREPARED: Final = ("channels", "mean", "std")


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
        running statistics say nothing (`facerec.models.unfolding`).

    Raises:
        CheckpointError: no such file, unreadable, or entries that are missing, left over or of another shape.
        UserError: a package that is needed to read the file is missing.
    """
    where = f"backbone.pretrained={path}"
    file = hub.weights_in(Path(path))
    with _named(where, file):
        onnx = kind_of(file).name == "onnx"
        if onnx and isinstance(backbone, Backbone):
            from facerec.models.onnx_weights import load_onnx

            absorbed, known = load_onnx(backbone, file, where)
            _compare(input, known, "", where)
            return absorbed
    content, recorded = _content(path, where)
    weights = tensors_in(content, where)
    absorbed = load_weights(backbone, weights, where)
    lineage, usual = usual_preprocessing(weights)
    _compare(input, recorded or {**getattr(backbone, "preprocessing", {}), **usual}, lineage, where)
    return absorbed


def _compare(input: Preprocessing | None, usual: Mapping[str, Any], lineage: str, where: str) -> None:
    """Warn where images will not be prepared as they were for the weights."""
    try:
        wanted = build(Preprocessing, "input", dict(usual))
    except ConfigError as error:
        raise CheckpointError(f"{where}: its preprocessing cannot be used: {error}") from error
    known = {key: getattr(wanted, key) for key in _PREPARED if key in usual}
    if input is not None and (other := {k: v for k, v in known.items() if v != getattr(input, k)}):
        words = " ".join(_setting(f"input.{key}", value) for key, value in other.items())
        log.warning("%s: weights%s, from images prepared otherwise; say %s", where, lineage, words)


def _setting(key: str, value: object) -> str:
    """A setting as it is typed."""
    return f"'{key}=[{','.join(map(str, value))}]'" if isinstance(value, list) else f"{key}={value}"


def read_weights(path: Path | str, where: str | None = None) -> dict[str, Tensor]:
    """Read the tensors by name in a checkpoint, state dict, safetensors file or folder of the hub.

    Raises:
        CheckpointError: no such file, unreadable, or without tensors; it begins with `where` (``ckpt=PATH``).
    """
    where = where or f"ckpt={path}"
    return tensors_in(_content(path, where)[0], where)


def _content(path: Path | str, where: str) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """What a file of weights holds, and the preprocessing that it records; empty where it does not."""
    folder, path = Path(path), hub.weights_in(Path(path))
    with _named(where, path):
        metadata = hub.metadata_of(folder) if path != folder and hub.is_folder(folder) else {}
        if kind_of(path).name == "safetensors":
            content, own = read_safetensors(path, f"ckpt={path}")
            return content, hub.recorded(own | metadata, "input", where)
        state = checkpoint.load(path)
    ours = state.get("input") if "config" in state else None
    known = dict(ours) if isinstance(ours, Mapping) and are_settings(ours) else {}
    return state, known or hub.recorded(metadata, "input", where)


@contextlib.contextmanager
def _named(where: str, path: Path) -> Iterator[None]:
    """Let errors over `path` begin with `where`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"ckpt={path}", where, 1)) from error
