"""Weights to start from, out of any file that holds some."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from facerec.backbones.base import Backbone
from facerec.errors import CheckpointError
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint, hub
from facerec.models.lineages import usual_preprocessing
from facerec.models.opening import kind_of
from facerec.models.weights import load_weights, read_safetensors, tensors_in

log = logging.getLogger(__name__)

_PREPARED: Final = ("mean", "std", "channels")


def load_pretrained(backbone: nn.Module, path: Path | str, input: Preprocessing | None = None) -> list[str]:
    """Load the weights in `path` into `backbone`, all of them or none.

    Accepted are checkpoints of facerec, state dicts of the published layouts (bare or wrapped, behind any
    prefix such as ``module.``), safetensors files and ONNX networks of the backbone's structure. Weights of
    other modules are left out, and logged.

    Args:
        input: how the images will be prepared; a warning says where the weights are of a lineage that
            prepares them otherwise.

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

            absorbed, inside = load_onnx(backbone, file, where)
            known = {} if inside is None else {key: getattr(inside, key) for key in _PREPARED}
            _compare(input, known, "", where)
            return absorbed
    weights = read_weights(path, where)
    absorbed = load_weights(backbone, weights, where)
    lineage, usual = usual_preprocessing(weights)
    _compare(input, usual, lineage, where)
    return absorbed


def _compare(input: Preprocessing | None, usual: Mapping[str, Any], lineage: str, where: str) -> None:
    """Warn where images will not be prepared as they were for the weights."""
    if input is not None and (other := {k: v for k, v in usual.items() if v != getattr(input, k)}):
        words = " ".join(f"input.{key}={value}" for key, value in other.items())
        log.warning("%s: weights%s, from images prepared otherwise; say %s", where, lineage, words)


def read_weights(path: Path | str, where: str | None = None) -> dict[str, Tensor]:
    """Read the tensors by name in a checkpoint, state dict, safetensors file or folder of the hub.

    Raises:
        CheckpointError: no such file, unreadable, or without tensors; it begins with `where` (``ckpt=PATH``).
    """
    where = where or f"ckpt={path}"
    path = hub.weights_in(Path(path))
    with _named(where, path):
        safetensors = kind_of(path).name == "safetensors"
        content = read_safetensors(path, f"ckpt={path}")[0] if safetensors else checkpoint.load(path)
    return tensors_in(content, where)


@contextlib.contextmanager
def _named(where: str, path: Path) -> Iterator[None]:
    """Let errors over `path` begin with `where`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"ckpt={path}", where, 1)) from error
