"""Reader of ``.metadata``, the description of the tensors in a folder of torch.distributed.checkpoint.

A checkpoint may come from the web, and torch unpickles the description and follows it: here
`pickles.interpreter` reads it, and its claims are compared with the files that are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from facerec.errors import CheckpointError, DamagedCheckpointError, DamagedDataError
from facerec.pickles.interpreter import Reader
from facerec.pickles.stand_ins import Broken, Global, Inert, numbers, shown, text
from facerec.pickles.torch_file import DTYPES

METADATA: Final = ".metadata"
_TORCH: Final = "torch.distributed.checkpoint"
_TENSOR: Final = f"{_TORCH}.metadata.TensorStorageMetadata"
_Chunk = tuple[str, tuple[int, ...]]  # name of a tensor, and where in it a part begins


class Part(NamedTuple):
    """A part of a tensor: where in it it begins, its size, and where its bytes are."""

    begin: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    offset: int
    length: int


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint folder."""

    size: tuple[int, ...]
    dtype: torch.dtype
    parts: list[Part]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by name.

    Raises:
        DamagedCheckpointError: the description is damaged, or claims more than the files hold.
        CheckpointError: it cannot be read.
    """
    try:
        content = (folder / METADATA).read_bytes()
        fields = _fields(Reader(content, {"torch.Size": numbers}).run(), f"{_TORCH}.metadata.Metadata")
        stored: dict[_Chunk, Any] = {}
        for index, where in fields["storage_data"].items():
            chunk = _fields(index, f"{_TORCH}.metadata.MetadataIndex")
            stored[text(chunk["fqn"]), numbers(chunk["offset"])] = where
        tensors = {
            text(name): _tensor(name, entry, stored)
            for name, entry in fields["state_dict_metadata"].items()
            if type(entry) is Inert and entry.name == _TENSOR
        }
        parts = [part for tensor in tensors.values() for part in tensor.parts]
        lengths = {file: (folder / file).stat().st_size for file in {part.file for part in parts}}
        if any(part.offset + part.length > lengths[part.file] for part in parts):
            raise Broken("a file of it is cut")
        if sum(part.length for part in parts) > sum(lengths.values()):
            raise Broken("it claims more than its files hold")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (it has no {missing})") from error
    except OSError as error:
        raise CheckpointError(f"ckpt={folder}: cannot be read ({error.strerror})") from error
    # A description that is none fails where its fields are looked for.
    except (Broken, DamagedDataError, LookupError, AttributeError, TypeError, ValueError) as error:
        reason = error if isinstance(error, Broken) else type(error).__name__
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (its {METADATA}: {reason})") from error
    return tensors


def _tensor(name: str, entry: Inert, stored: Mapping[_Chunk, Any]) -> StoredTensor:
    fields = _fields(entry, _TENSOR)
    properties = _fields(fields["properties"], f"{_TORCH}.metadata.TensorProperties")
    dtype = DTYPES[properties[0].name]
    size = numbers(fields["size"])
    parts = []
    for chunk in fields["chunks"]:
        described = _fields(chunk, f"{_TORCH}.metadata.ChunkStorageMetadata")
        begin, extent = numbers(described["offsets"]), numbers(described["sizes"])
        where = _fields(stored[name, begin], f"{_TORCH}.filesystem._StorageInfo")
        file = text(where["relative_path"])
        offset, length = numbers((where["offset"], where["length"]))
        if Path(file).name != file or where.get("transform_descriptors"):
            raise Broken("a part of it lies elsewhere, or is compressed")
        inside = all(b + e <= s for b, e, s in zip(begin, extent, size, strict=True))
        if not inside or math.prod(extent) * dtype.itemsize > length:
            raise Broken("it claims more than its files hold")
        parts.append(Part(begin, extent, file, offset, length))
    if sum(math.prod(part.size) for part in parts) != math.prod(size):
        raise Broken(f"a part of {shown(name)} is missing")
    return StoredTensor(size, dtype, parts)


def _fields(thing: Any, name: str) -> Any:
    """Return the state of an inert object that stands for one of class `name`."""
    if type(thing) is not Inert or thing.name != name:
        named = shown(thing.name) if isinstance(thing, Inert | Global) else type(thing).__name__
        raise Broken(f"it names {named}, not {name.rpartition('.')[2]}")
    return thing.state
