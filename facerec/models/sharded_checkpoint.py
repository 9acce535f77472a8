"""Checkpoints that many processes write together, each its part, and any number of processes reads.

A checkpoint is a folder: tensors in the files of torch.distributed.checkpoint, everything else in ``run.pt``,
which is written last, so that a folder without it is a save that was never finished. A checkpoint may come
from the web, and torch.distributed.checkpoint unpickles what describes the tensors and goes where it says, so
that it writes folders only: they are read here, by `pickles.interpreter` and `pickles.torch_file`.
"""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from facerec import distributed
from facerec.errors import CheckpointError, DamagedCheckpointError, DamagedDataError, StorageError
from facerec.models import checkpoint
from facerec.pickles.interpreter import Reader
from facerec.pickles.stand_ins import Broken, Global, Inert, numbers, shown, text

if TYPE_CHECKING:
    from concurrent.futures import Future

    import torch
    from torch import Tensor

Rows = tuple[int, int, int]
"""Rows start … stop−1 of a tensor that has so many in all: what one process holds."""

REST = "run.pt"
_METADATA = ".metadata"
_CHECKSUM = "metadata_crc32"
_TORCH = "torch.distributed.checkpoint"


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
        if distributed.rank() == 0:
            checkpoint.save(folder / REST, rest | {_CHECKSUM: _checksum(folder)})

    state = {name: _joint(tensor, rows.get(name)) for name, tensor in tensors.items()}
    writer = dcp.FileSystemWriter(folder)
    planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    alone = distributed.world_size() == 1
    if background and not alone:
        group = distributed.gloo_group()
        future = dcp.async_save(state, storage_writer=writer, planner=planner, process_group=group)
        return Saving(future, conclude)  # type: ignore[arg-type]
    _storing(lambda: dcp.save(state, storage_writer=writer, planner=planner, no_dist=alone))
    return Saving(None, conclude)


def load(folder: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> None:
    """Fill `tensors` with what `folder` has under their names, whoever wrote which part; see `save`.

    Raises:
        DamagedCheckpointError: the folder is damaged, as this or another process finds.
        CheckpointError: a tensor is missing or of another size.
    """
    there = _entries(folder)
    for name, tensor in tensors.items():
        size = (rows[name][2], *tensor.shape[1:]) if name in rows else tuple(tensor.shape)
        if name not in there or there[name].size != size:
            raise CheckpointError(
                f"ckpt={folder}: its {name} is {there[name].size}, but {size} is needed"
                if name in there
                else f"ckpt={folder}: has no {name}"
            )
    found = ""
    try:
        for name, tensor in tensors.items():
            _fill(folder, there[name], tensor, rows[name][0] if name in rows else 0)
    except DamagedCheckpointError as error:
        found = str(error)
    for reason in filter(
        None, distributed.all_gather_object(found)
    ):  # so that none waits for another that has given up
        raise DamagedCheckpointError(reason)


def rest(folder: Path) -> dict[str, Any]:
    """Everything of a checkpoint folder but its large tensors."""
    state = checkpoint.load(folder / REST)
    if state.pop(_CHECKSUM, None) not in (None, _checksum(folder)):
        raise DamagedCheckpointError(f"ckpt={folder}: damaged ({_METADATA} is not what was written)")
    return state


def _checksum(folder: Path) -> int:
    """CRC-32 of the description of the tensors; the tensors themselves carry one each."""
    try:
        return zlib.crc32((folder / _METADATA).read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (it has no {_METADATA})") from error


def sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint folder by name, with their sizes."""
    return {name: entry.size for name, entry in _entries(folder).items()}


def read(folder: Path, section: str) -> dict[str, Tensor]:
    """All tensors whose names begin with ``section/``, whole, in this process's main memory.

    Raises:
        CheckpointError: there are none, or the folder is damaged.
    """
    import torch

    found = {}
    for name, entry in _entries(folder).items():
        if name.startswith(f"{section}/"):
            found[name.removeprefix(f"{section}/")] = tensor = torch.empty(entry.size, dtype=entry.dtype)
            _fill(folder, entry, tensor, 0)
    if not found:
        raise CheckpointError(f"ckpt={folder}: has no {section}")
    return found


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
    if rows is None or distributed.world_size() == 1:
        return tensor
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(tensor.device.type, (distributed.world_size(),))
    size = torch.Size((rows[2], *tensor.shape[1:]))
    return DTensor.from_local(
        tensor,
        mesh,
        [Shard(0)],
        run_check=False,
        shape=size,
        stride=torch.empty(size, device="meta").stride(),
    )


class _Part(NamedTuple):
    """A part of a tensor: where in it it begins, its size, and where its bytes are."""

    begin: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    offset: int
    length: int


class _Entry(NamedTuple):
    """A tensor of a checkpoint folder."""

    size: tuple[int, ...]
    dtype: torch.dtype
    parts: list[_Part]


def _entries(folder: Path) -> dict[str, _Entry]:
    """The tensors that a folder's description names; what it says of sizes is held against the files."""
    try:
        described = Reader((folder / _METADATA).read_bytes(), {"torch.Size": lambda size: size}).run()
        fields = _fields(described, f"{_TORCH}.metadata.Metadata")
        places: dict[tuple[str, tuple[int, ...]], Any] = {}
        for index, place in fields["storage_data"].items():
            at = _fields(index, f"{_TORCH}.metadata.MetadataIndex")
            places[text(at["fqn"]), numbers(at["offset"])] = place
        entries = {
            text(name): _entry(name, entry, places)
            for name, entry in fields["state_dict_metadata"].items()
            if type(entry) is Inert and entry.name == f"{_TORCH}.metadata.TensorStorageMetadata"
        }
        parts = [part for entry in entries.values() for part in entry.parts]
        files = {name: (folder / name).stat().st_size for name in {part.file for part in parts}}
        if any(part.offset + part.length > files[part.file] for part in parts):
            raise Broken("a file of it is cut")
        if sum(part.length for part in parts) > sum(files.values()):
            raise Broken("it claims more than its files hold")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (it has no {missing})") from error
    except OSError as error:
        raise CheckpointError(f"ckpt={folder}: cannot be read ({error.strerror})") from error
    # What a description that is none leads to where its fields are looked for.
    except (Broken, DamagedDataError, LookupError, AttributeError, TypeError, ValueError) as error:
        reason = error if isinstance(error, Broken) else type(error).__name__
        raise DamagedCheckpointError(f"ckpt={folder}: damaged (its {_METADATA}: {reason})") from error
    return entries


def _entry(name: str, entry: Inert, places: Mapping[tuple[str, tuple[int, ...]], Any]) -> _Entry:
    """A tensor from its description."""
    from facerec.pickles.torch_file import DTYPES

    fields = _fields(entry, f"{_TORCH}.metadata.TensorStorageMetadata")
    properties = _fields(fields["properties"], f"{_TORCH}.metadata.TensorProperties")
    dtype = DTYPES[properties[0].name]
    size = numbers(fields["size"])
    parts = []
    for chunk in fields["chunks"]:
        at = _fields(chunk, f"{_TORCH}.metadata.ChunkStorageMetadata")
        begin, extent = numbers(at["offsets"]), numbers(at["sizes"])
        place = places[name, begin]
        stored = _fields(place, f"{_TORCH}.filesystem._StorageInfo")
        file = text(stored["relative_path"])
        offset, length = numbers((stored["offset"], stored["length"]))
        if Path(file).name != file or stored.get("transform_descriptors"):
            raise Broken("a part of it lies elsewhere, or is compressed")
        inside = all(b + e <= s for b, e, s in zip(begin, extent, size, strict=True))
        if not inside or math.prod(extent) * dtype.itemsize > length:
            raise Broken("it claims more than its files hold")
        parts.append(_Part(begin, extent, file, offset, length))
    if sum(math.prod(part.size) for part in parts) != math.prod(size):
        raise Broken(f"a part of {shown(name)} is missing")
    return _Entry(size, dtype, parts)


def _fields(thing: Any, name: str) -> Any:
    """The state of an inert object that stands for one of class `name`."""
    if type(thing) is not Inert or thing.name != name:
        named = shown(thing.name) if isinstance(thing, Inert | Global) else type(thing).__name__
        raise Broken(f"it names {named}, not {name.rpartition('.')[2]}")
    return thing.state


def _fill(folder: Path, entry: _Entry, tensor: Tensor, first: int) -> None:
    """Copy what `folder` has of an entry into `tensor`, which holds its rows from `first` on."""
    from facerec.pickles import torch_file

    for part in entry.parts:
        own = tensor
        piece_begin, piece_end = 0, part.size[0] if part.size else 1
        if tensor.ndim:
            begin = max(part.begin[0], first)
            end = min(part.begin[0] + part.size[0], first + len(tensor))
            if begin >= end:
                continue
            piece_begin, piece_end = begin - part.begin[0], end - part.begin[0]
            own = tensor[begin - first : end - first]
            for axis in range(1, tensor.ndim):
                own = own.narrow(axis, part.begin[axis], part.size[axis])
        try:
            with (folder / part.file).open("rb") as file:
                content = torch_file.read(
                    torch_file.Window(file, part.offset, part.length), part.length
                ).value
        except (Broken, OSError) as error:
            raise DamagedCheckpointError(f"ckpt={folder}: damaged ({part.file}: {error})") from error
        if not hasattr(content, "shape") or tuple(content.shape) != part.size:
            raise DamagedCheckpointError(f"ckpt={folder}: damaged ({part.file} holds something else)")
        own.detach().copy_(content[piece_begin:piece_end] if tensor.ndim else content)


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
