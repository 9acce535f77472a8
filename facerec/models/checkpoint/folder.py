"""Checkpoint folders that several ranks write together, each its shard.

Tensors are in the files of torch.distributed.checkpoint, everything else in ``run.pt``, which is written
last, so that a folder without it is a save that was never finished.

A checkpoint may come from the web, and torch unpickles ``.metadata``, the description of the tensors, and
follows it: here `pickles.interpreter` reads it, and its claims are compared with the files that are there.
"""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from facerec import distributed
from facerec.errors import CheckpointError, DamagedCheckpointError, DamagedDataError, StorageError
from facerec.models.checkpoint.file import Checkpoint, Rows, load_file, rows_of, save, split
from facerec.pickles import torch_file
from facerec.pickles.interpreter import Reader
from facerec.pickles.stand_ins import Broken, Global, Inert, numbers, shown, text

if TYPE_CHECKING:
    from concurrent.futures import Future

_RUN_FILE: Final = "run.pt"
_CHECKSUM: Final = "metadata_crc32"
_METADATA: Final = ".metadata"
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


def is_folder(path: Path) -> bool:
    """Return True for a finished checkpoint folder."""
    return (path / _RUN_FILE).is_file()


def remove(folder: Path) -> None:
    """Delete a checkpoint folder, the file that makes it count first."""
    (folder / _RUN_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class FolderSave:
    """A save under way; every rank begins it and calls `finish`.

    Args:
        folder: does not exist yet.
        state: with this rank's shards; of what is not sharded, rank 0's is written.
        shards: the rows of its tensors, by name.
        background: copy the tensors to main memory and write them while the run goes on.

    Raises:
        StorageError: a part could not be written.
    """

    def __init__(
        self, folder: Path, state: Mapping[str, Any], shards: Mapping[str, Rows], *, background: bool = False
    ) -> None:
        import torch.distributed.checkpoint as dcp

        self.folder = folder
        tensors, self._rest = split(state)
        stored = {
            name: _as_dtensor(tensor, rows_of(name, tensor, shards)) for name, tensor in tensors.items()
        }
        options: Any = {
            "storage_writer": dcp.FileSystemWriter(folder),
            "planner": dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
        }
        self._future: Future[Any] | None = None
        if background:
            group = distributed.gloo_group()
            self._future = dcp.async_save(stored, process_group=group, **options)  # type: ignore[assignment]
        else:
            _as_storage_error(lambda: dcp.save(stored, **options))

    def finish(self) -> None:
        """Wait until all is on disk, then write the file that makes it count; raises `StorageError`."""
        if self._future is not None:
            _as_storage_error(self._future.result)
        if distributed.rank() == 0:
            save(self.folder / _RUN_FILE, self._rest | {_CHECKSUM: _checksum(self.folder)})


class FolderCheckpoint(Checkpoint):
    """A checkpoint in a folder; raises `DamagedCheckpointError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rest = load_file(path / _RUN_FILE)
        if self.rest.pop(_CHECKSUM, None) not in (None, _checksum(path)):
            raise DamagedCheckpointError(f"ckpt={path}: damaged ({_METADATA} is not what was written)")
        self._stored = stored_tensors(path)
        self.sizes = {name: stored.size for name, stored in self._stored.items()}

    def _read(self, name: str) -> Tensor:
        tensor = torch.empty(self.sizes[name], dtype=self._stored[name].dtype)
        self._copy(name, tensor, 0)
        return tensor

    def _copy(self, name: str, tensor: Tensor, first: int) -> None:
        for part in self._stored[name].parts:
            if not tensor.ndim:
                tensor.detach().copy_(self._content(part))
                continue
            begin = max(part.begin[0], first)
            end = min(part.begin[0] + part.size[0], first + len(tensor))
            if begin >= end:
                continue
            target = tensor.detach()[begin - first : end - first]
            for axis in range(1, tensor.ndim):
                target = target.narrow(axis, part.begin[axis], part.size[axis])
            target.copy_(self._content(part)[begin - part.begin[0] : end - part.begin[0]])

    def _content(self, part: Part) -> Tensor:
        try:
            with (self.path / part.file).open("rb") as file:
                window = torch_file.Window(file, part.offset, part.length)
                content = torch_file.read(window, part.length).value
        except (Broken, OSError) as error:
            raise DamagedCheckpointError(f"ckpt={self.path}: damaged ({part.file}: {error})") from error
        if not isinstance(content, Tensor) or tuple(content.shape) != part.size:
            raise DamagedCheckpointError(f"ckpt={self.path}: damaged ({part.file} holds something else)")
        return content


def _checksum(folder: Path) -> int:
    """CRC-32 of the description of the tensors; each tensor's file carries its own."""
    try:
        return zlib.crc32((folder / _METADATA).read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (it has no {_METADATA})") from error


def _as_dtensor(tensor: Tensor, rows: Rows | None) -> Tensor:
    """Return a shard as a DTensor, which knows its rows; other tensors as they are."""
    tensor = tensor.detach()
    if rows is None:
        return tensor
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(tensor.device.type, (distributed.world_size(),))
    size = torch.Size((rows[2], *tensor.shape[1:]))
    stride = torch.empty(size, device="meta").stride()
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=size, stride=stride)


def _as_storage_error(write: Callable[[], Any]) -> None:
    """Call `write`; raise whatever it raises as `StorageError`."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        write()
    except (Exception, CheckpointException) as error:  # the latter is what dcp makes of anything
        failures = getattr(error, "failures", None)
        cause = next(iter(failures.values()))[0] if failures else error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise StorageError(f"the checkpoint could not be written: {lines[-1][:200]}") from error


# Description of the tensors --------------------------------------------------------------------------------


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by name.

    Raises:
        DamagedCheckpointError: the description is damaged, or claims more than the files hold.
        CheckpointError: it cannot be read.
    """
    try:
        content = (folder / _METADATA).read_bytes()
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
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (its {_METADATA}: {reason})") from error
    return tensors


def _tensor(name: str, entry: Inert, stored: Mapping[_Chunk, Any]) -> StoredTensor:
    fields = _fields(entry, _TENSOR)
    properties = _fields(fields["properties"], f"{_TORCH}.metadata.TensorProperties")
    dtype = torch_file.DTYPES[properties[0].name]
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
