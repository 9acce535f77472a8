"""Files of torch.save: written atomically, read as data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facerec.errors import CheckpointError, DamagedCheckpointError
from facerec.files import replacing
from facerec.models.checkpoint.sections import Checkpoint, split
from facerec.pickles import torch_file
from facerec.pickles.stand_ins import Broken, Inert, shown

log = logging.getLogger(__name__)

_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")


def save(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) to a file, atomically.

    Raises:
        StorageError: it could not be written; a former file of that name is untouched.
    """
    with replacing(Path(path)) as file:
        torch.save(dict(state), file)


def load_file(path: Path) -> dict[str, Any]:
    """Read a file of torch.save onto the CPU; see `facerec.models.checkpoint.load`."""
    require_file(path)
    try:
        with path.open("rb") as file:
            state, inert = torch_file.read(file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"ckpt={path}: cannot be read ({error.strerror or error})") from error
    except Broken as error:
        raise DamagedCheckpointError(f"ckpt={path}: not a checkpoint, or a damaged one ({error})") from error
    if isinstance(state, Inert):
        raise CheckpointError(
            f"ckpt={path}: names {shown(state.name)}, but a checkpoint may hold only tensors and plain "
            "values; where it was made, save the network's state_dict() alone, or export it to ONNX"
        )
    if not isinstance(state, dict):
        raise CheckpointError(f"ckpt={path}: holds a {type(state).__name__}, not a checkpoint")
    if inert:
        names = ", ".join(map(shown, inert[:3])) + (f" and {len(inert) - 3} more" if len(inert) > 3 else "")
        log.info("ckpt=%s: what it holds of %s is neither read nor run", path, names)
    return state


def require_file(path: Path) -> None:
    """Raise `CheckpointError` unless there is such a file, with the model files of its folder."""
    if path.is_file():
        return
    if path.is_dir():
        there = [str(file.relative_to(path)) for file in _model_files(path.rglob("*"))]
        reason = f"is a folder; name a file in it ({', '.join(there) or 'there is no model file'})"
    else:
        there = [file.name for file in _model_files(path.parent.glob("*"))]
        reason = f"no such file; that folder has {', '.join(there)}" if there else "no such file"
    raise CheckpointError(f"ckpt={path}: {reason}")


def _model_files(files: Iterable[Path]) -> list[Path]:
    return sorted(file for file in files if file.suffix in _ENDINGS)[:5]


class FileCheckpoint(Checkpoint):
    """A checkpoint in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors, self.rest = split(load_file(path))
        self.sizes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def _read(self, name: str) -> Tensor:
        return self._tensors[name]

    def _copy(self, name: str, tensor: Tensor, first: int) -> None:
        content = self._tensors[name]
        tensor.detach().copy_(content[first : first + len(tensor)] if tensor.ndim else content)
