"""Files of torch.save, and the sections of any checkpoint.

Tensors are called ``head/weight``, ``optimizer/3/momentum_buffer`` and so on; everything else is the rest.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from facerec.errors import CheckpointError, DamagedCheckpointError
from facerec.files import replacing
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


MODULES: Final = ("backbone", "head", "ema")  # sections that hold tensors by name

Rows = tuple[int, int, int]
"""Rows start … stop−1 of a tensor that has so many in all: a shard."""


def split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate the tensors of the sections of a state from the rest; a section of another kind is rest."""
    rest = dict(state)
    tensors: dict[str, Tensor] = {}
    for section in MODULES:
        entries = rest.get(section)
        if isinstance(entries, dict) and all(isinstance(value, Tensor) for value in entries.values()):
            tensors |= {f"{section}/{name}": value for name, value in rest.pop(section).items()}
    optimizer = rest.get("optimizer")
    slots = optimizer.get("state") if isinstance(optimizer, dict) else None
    if isinstance(slots, dict) and all(isinstance(values, dict) for values in slots.values()):
        for index, values in slots.items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
        rest["optimizer"] = {**optimizer, "state": {}}  # type: ignore[dict-item]
    return tensors, rest


def is_counter(value: object, least: int = 0) -> bool:
    """Return True for an integer that a counter can hold, `least` or more."""
    return type(value) is int and least <= value < 2**63


def counter(state: Mapping[str, Any], name: str, where: str) -> int | None:
    """Return the counter `name` of the checkpoint `where`, if it has one; raises `CheckpointError`."""
    value = state.get(name)
    if value is not None and not is_counter(value):
        raise CheckpointError(f"{where}: its {name} is no integer of 0 or more; take another checkpoint")
    return value


def rows_of(name: str, tensor: Tensor, shards: Mapping[str, Rows]) -> Rows | None:
    """Return the rows that `tensor` holds, by its name or its parameter's: momentum is sharded alike."""
    return shards.get(name) or (shards.get(name.rpartition("/")[0]) if tensor.ndim else None)


class Checkpoint(ABC):
    """A checkpoint of a run.

    Attributes:
        sizes: of its tensors, by name.
        rest: everything but these tensors.
    """

    path: Path
    sizes: Mapping[str, tuple[int, ...]]
    rest: dict[str, Any]

    def has(self, section: str) -> bool:
        """Return True where there is a section, of tensors or another."""
        return section in self.rest or any(name.startswith(f"{section}/") for name in self.sizes)

    def read(self, section: str) -> dict[str, Tensor]:
        """Read all tensors of a section; raises `CheckpointError` where there are none."""
        names = [name for name in self.sizes if name.startswith(f"{section}/")]
        if not names:
            raise CheckpointError(f"ckpt={self.path}: has no {section}")
        return {name.removeprefix(f"{section}/"): self._read(name) for name in names}

    def fill(self, tensors: Mapping[str, Tensor], shards: Mapping[str, Rows]) -> None:
        """Copy the tensors of the same names into `tensors`, of shards their rows.

        Raises:
            DamagedCheckpointError: it is damaged; `tensors` may be filled in part.
            CheckpointError: a tensor is missing or of another size.
        """
        first: dict[str, int] = {}
        for name, tensor in tensors.items():
            shard = rows_of(name, tensor, shards)
            first[name] = shard[0] if shard else 0
            needed = (shard[2], *tensor.shape[1:]) if shard else tuple(tensor.shape)
            there = self.sizes.get(name)
            if there != needed:
                wrong = (
                    f"has no {name}" if there is None else f"its {name} is {there}, but {needed} is needed"
                )
                raise CheckpointError(f"ckpt={self.path}: {wrong}")
        for name, tensor in tensors.items():
            self._copy(name, tensor, first[name])

    @abstractmethod
    def _read(self, name: str) -> Tensor:
        """Read a tensor."""

    @abstractmethod
    def _copy(self, name: str, tensor: Tensor, first: int) -> None:
        """Copy as many rows as `tensor` has, from row `first` on."""


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
