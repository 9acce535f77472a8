"""Checkpoints that many processes write together, each its part, and any number of processes reads.

A checkpoint is a folder: tensors in the files of torch.distributed.checkpoint, everything else in ``run.pt``,
which is written last, so that a folder without it is a save that was never finished. What
torch.distributed.checkpoint would unpickle is read by an unpickler here that knows a handful of harmless
classes, since a checkpoint may come from the web.
"""

from __future__ import annotations

import functools
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerec import checkpoint, processes
from facerec.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

Rows = tuple[int, int, int]
"""Rows start … stop−1 of a tensor that has so many in all: what one process holds."""

REST = "run.pt"

_HARMLESS = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "BytesStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "collections": ("OrderedDict",),
}


def is_one(path: Path) -> bool:
    """Whether `path` is a finished checkpoint folder."""
    return (path / REST).is_file()


class Saving:
    """A save under way; `finish` waits for it and makes it count."""

    def __init__(self, future: Future[Any] | None, conclude: Callable[[], None]) -> None:
        self._future, self._conclude, self._concluded = future, conclude, False

    @property
    def written(self) -> bool:
        """Whether the tensors are on disk, so that `finish` need not wait."""
        return self._future is None or self._future.done()

    def finish(self) -> None:
        """Wait until all is on disk, then write the file that says so.

        Raises:
            StorageError: a part could not be written.
        """
        if self._concluded:
            return
        self._concluded = True
        if self._future is not None:
            _storing(self._future.result)
        self._conclude()


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, Rows],
    rest: dict[str, Any],
    *,
    background: bool = False,
) -> Saving:
    """Write a checkpoint folder; every process calls this, and `finish` of what it returns.

    Args:
        folder: does not exist yet.
        tensors: by name. Those of `rows` are this process's part of a larger one; of the others, which all
            processes have alike, the first process's is written.
        rows: which rows of it a process holds, for those that are shared out.
        rest: plain values and small tensors; the first process's are written.
        background: copy the tensors to main memory and write them while the run goes on.

    Raises:
        StorageError: a part could not be written; what was there before is untouched.
    """
    import torch.distributed.checkpoint as dcp

    def conclude() -> None:
        if processes.rank() == 0:
            checkpoint.save(folder / REST, rest)

    state = {name: _joint(tensor, rows.get(name)) for name, tensor in tensors.items()}
    writer = dcp.FileSystemWriter(folder)
    planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    alone = processes.count() == 1
    if background and not alone:
        group = processes.quiet_group()
        future = dcp.async_save(state, storage_writer=writer, planner=planner, process_group=group)
        return Saving(future, conclude)  # type: ignore[arg-type]
    _storing(lambda: dcp.save(state, storage_writer=writer, planner=planner, no_dist=alone))
    return Saving(None, conclude)


def load(folder: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> None:
    """Fill `tensors` with what `folder` has under their names, whoever wrote which part; see `save`.

    Raises:
        CheckpointError: a tensor is missing or of another size, or the folder is damaged.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import CheckpointException

    there = sizes(folder)
    for name, tensor in tensors.items():
        size = (rows[name][2], *tensor.shape[1:]) if name in rows else tuple(tensor.shape)
        if there.get(name) != size:
            raise CheckpointError(
                f"ckpt={folder}: its {name} is {there[name]}, but {size} is needed"
                if name in there
                else f"ckpt={folder}: has no {name}"
            )
    state = {name: _joint(tensor, rows.get(name)) for name, tensor in tensors.items()}
    alone = processes.count() == 1
    try:
        # That one process reads what several have written is the intent here, and no cause for a warning.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            dcp.load(state, storage_reader=_reader(folder), planner=_planner(), no_dist=alone)
    except (Exception, CheckpointException) as error:  # the latter is what dcp makes of anything
        raise CheckpointError(f"ckpt={folder}: damaged ({_first_line(error)})") from error


def rest(folder: Path) -> dict[str, Any]:
    """Everything of a checkpoint folder but its large tensors."""
    return checkpoint.load(folder / REST)


def sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint folder by name, with their sizes."""
    described = _reader(folder).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in described.items() if hasattr(entry, "size")}


def read(folder: Path, section: str) -> dict[str, Tensor]:
    """All tensors whose names begin with ``section/``, whole, in this process's main memory.

    Raises:
        CheckpointError: there are none, or the folder is damaged.
    """
    import torch

    described = _reader(folder).read_metadata().state_dict_metadata
    wanted = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if name.startswith(f"{section}/") and hasattr(entry, "size")
    }
    if not wanted:
        raise CheckpointError(f"ckpt={folder}: has no {section}")
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import CheckpointException

    try:
        # That one process reads what several have written is the intent here, and no cause for a warning.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            dcp.load(wanted, storage_reader=_reader(folder), planner=_planner(), no_dist=True)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"ckpt={folder}: damaged ({_first_line(error)})") from error
    return {name.removeprefix(f"{section}/"): tensor for name, tensor in wanted.items()}


def load_backbone(folder: Path) -> dict[str, Any]:
    """A checkpoint folder as a checkpoint file would have it, of its networks the backbone alone."""
    return rest(folder) | {"backbone": read(folder, "backbone")}


def remove(folder: Path) -> None:
    """Delete a checkpoint folder, its finished mark first."""
    (folder / REST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _joint(tensor: Tensor, rows: Rows | None) -> Any:
    """A part of a shared-out tensor as DTensor, which knows where in the whole it belongs."""
    tensor = tensor.detach()
    if rows is None or processes.count() == 1:
        return tensor
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(tensor.device.type, (processes.count(),))
    size = torch.Size((rows[2], *tensor.shape[1:]))
    return DTensor.from_local(
        tensor,
        mesh,
        [Shard(0)],
        run_check=False,
        shape=size,
        stride=torch.empty(size, device="meta").stride(),
    )


def _reader(folder: Path) -> Any:
    """A reader of files that unpickles nothing but descriptions of tensors."""
    return _reader_class()(folder)


@functools.cache
def _reader_class() -> Any:
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> Any:
            path = Path(self.path)
            try:
                with (path / ".metadata").open("rb") as file:
                    metadata = _Unpickler(file).load()
                metadata.storage_meta = dcp.metadata.StorageMeta(load_id=self.load_id)
            except CheckpointError:
                raise
            except FileNotFoundError as error:
                raise CheckpointError(f"ckpt={path}: not a checkpoint folder") from error
            except Exception as error:  # damaged pickles raise anything
                raise CheckpointError(f"ckpt={path}: damaged ({_first_line(error)})") from error
            return metadata

    return Reader


class _Unpickler(pickle.Unpickler):
    """Knows the classes that describe tensors, and none that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(
            f"ckpt: a .metadata file names {module}.{name}, but a checkpoint may hold only tensors and "
            "plain values"
        )


def _planner() -> Any:
    """A plan of what to read that takes tensors only: other things would be unpickled."""
    return _planner_class()()


@functools.cache
def _planner_class() -> Any:
    import torch.distributed.checkpoint as dcp

    class Planner(dcp.DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: Any) -> None:
            raise CheckpointError(f"{read_item.dest_index.fqn} is not a tensor")

    return Planner


def _storing(write: Callable[[], Any]) -> None:
    from torch.distributed.checkpoint import CheckpointException

    try:
        write()
    except (Exception, CheckpointException) as error:  # the latter is what dcp makes of anything
        raise StorageError(f"the checkpoint could not be written: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The innermost reason, in one line."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    text = str(error).strip().splitlines()
    return (text[-1] if text else type(error).__name__)[:200]
