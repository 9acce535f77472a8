"""Checkpoint folders that several ranks write together, each its shard.

Tensors are in the files of torch.distributed.checkpoint, everything else in ``run.pt``, which is written
last, so that a folder without it is a save that was never finished.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from facerec import distributed
from facerec.errors import DamagedCheckpointError, StorageError
from facerec.models.checkpoint.dcp_metadata import METADATA, Part, stored_tensors
from facerec.models.checkpoint.file import load_file, save
from facerec.models.checkpoint.sections import Checkpoint, Rows, rows_of, split
from facerec.pickles import torch_file
from facerec.pickles.stand_ins import Broken

if TYPE_CHECKING:
    from concurrent.futures import Future

RUN_FILE = "run.pt"
_CHECKSUM = "metadata_crc32"


def is_folder(path: Path) -> bool:
    """Return True for a finished checkpoint folder."""
    return (path / RUN_FILE).is_file()


def remove(folder: Path) -> None:
    """Delete a checkpoint folder, the file that makes it count first."""
    (folder / RUN_FILE).unlink(missing_ok=True)
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
            save(self.folder / RUN_FILE, self._rest | {_CHECKSUM: _checksum(self.folder)})


class FolderCheckpoint(Checkpoint):
    """A checkpoint in a folder; raises `DamagedCheckpointError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rest = load_file(path / RUN_FILE)
        if self.rest.pop(_CHECKSUM, None) not in (None, _checksum(path)):
            raise DamagedCheckpointError(f"ckpt={path}: damaged ({METADATA} is not what was written)")
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
        return zlib.crc32((folder / METADATA).read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (it has no {METADATA})") from error


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
