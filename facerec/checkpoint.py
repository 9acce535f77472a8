"""Checkpoint files: written whole, and read without ever running anything that is in them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from facerec.errors import CheckpointError, DamagedCheckpointError
from facerec.files import replacing
from facerec.inert import Broken, Inert, shown

log = logging.getLogger(__name__)

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

    Nothing in it is run: what is neither a tensor nor a plain value comes as an `Inert` object, and the log
    names the classes of those.

    Raises:
        DamagedCheckpointError: not a checkpoint, or one whose bytes have changed.
        CheckpointError: no such file, one that cannot be read, or one without weights or settings.
    """
    from facerec import torch_file

    path = Path(path)
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


def is_count(value: object, least: int = 0) -> bool:
    """True for a whole number of `least` or more that a counter can reach."""
    return type(value) is int and least <= value < 2**63


def count(state: Mapping[str, Any], name: str, where: str) -> int | None:
    """The counter `name` of the checkpoint `where`, None where it has none; raises `CheckpointError`."""
    value = state.get(name)
    if value is not None and not is_count(value):
        raise CheckpointError(f"{where}: its {name} is no whole number of 0 or more; take another checkpoint")
    return value


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
