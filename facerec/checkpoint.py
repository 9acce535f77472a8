"""Checkpoint files: written whole, and read without ever running anything that is in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from facerec.errors import CheckpointError
from facerec.files import replacing

ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")


def save(path: Path | str, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `path` is never half a file.

    Raises:
        StorageError: it could not be written; a former file of that name is untouched.
    """
    import torch

    with replacing(Path(path)) as file:
        torch.save(state, file)


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Only tensors and plain containers are accepted (``weights_only=True``): a file that names anything else
    to be built or called is refused, and nothing of it runs.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or holding more than data.
    """
    import torch

    path = Path(path)
    require_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if not refused and not zipfile.is_zipfile(path):
            raise CheckpointError(f"ckpt={path}: not a checkpoint, or a damaged one") from error
        raise CheckpointError(
            f"ckpt={path}: names {refused or 'something that is not data'}, but a checkpoint may hold only "
            "tensors and plain values; where it was made, save the network's state_dict() alone, or export "
            "it to ONNX"
        ) from error
    # What torch's reader meets in a file that is none of its own is whatever the wrong bytes happen to cause.
    except (
        *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
        OSError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"ckpt={path}: not a checkpoint, or a damaged one ({reason})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"ckpt={path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def require_file(path: Path) -> None:
    """Raise `CheckpointError` unless there is such a file; it names those of that folder."""
    if path.is_file():
        return
    if path.is_dir():
        there = [str(file.relative_to(path)) for file in _models(path.rglob("*"))]
        said = f"is a folder; name a file in it ({', '.join(there) or 'there is no model file'})"
    else:
        there = [file.name for file in _models(path.parent.glob("*"))]
        said = f"no such file; that folder has {', '.join(there)}" if there else "no such file"
    raise CheckpointError(f"ckpt={path}: {said}")


def _models(files: Iterable[Path]) -> list[Path]:
    """The first few model files, by their endings."""
    return sorted(file for file in files if file.suffix in ENDINGS)[:5]
