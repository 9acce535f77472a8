"""Weights to start from, out of any file that holds some."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from facerec.errors import CheckpointError
from facerec.models import checkpoint, hub
from facerec.models.opening import kind_of
from facerec.models.weights import load_weights, read_safetensors, tensors_in


def load_pretrained(backbone: nn.Module, path: Path | str) -> None:
    """Load the weights in `path` into `backbone`, all of them or none.

    Accepted are checkpoints of facerec, state dicts of the published layouts (bare or wrapped, behind any
    prefix such as ``module.``) and safetensors files. Weights of other modules are left out, and logged.

    Raises:
        CheckpointError: no such file, unreadable, or entries that are missing, left over or of another shape.
    """
    where = f"backbone.pretrained={path}"
    load_weights(backbone, read_weights(path, where), where)


def read_weights(path: Path | str, where: str | None = None) -> dict[str, Tensor]:
    """Read the tensors by name in a checkpoint, state dict, safetensors file or folder of the hub.

    Raises:
        CheckpointError: no such file, unreadable, or without tensors; it begins with `where` (``ckpt=PATH``).
    """
    where = where or f"ckpt={path}"
    path = hub.weights_in(Path(path))
    try:
        safetensors = kind_of(path).name == "safetensors"
        content = read_safetensors(path, f"ckpt={path}")[0] if safetensors else checkpoint.load(path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"ckpt={path}", where, 1)) from error
    return tensors_in(content, where)
