"""Checkpoints: written atomically, kept, found again, and read without running anything that is in them.

`RunCheckpoints` saves and keeps those of a run, `open_checkpoint` reads any of them by sections:
``backbone``, ``head``, ``ema`` and ``optimizer`` hold tensors, the rest is plain values and small tensors.
`save` and `load` serve model files such as best.pt.

There are two forms, and only this package knows which one a checkpoint has. A run whose class weights are
all on one rank writes a file of torch.save: one rename puts it in place of the one before, it is copied and
sent as one thing, and any program that uses torch opens it; a folder has none of that. Ranks that hold shards
write a folder of torch.distributed.checkpoint, as none of them may have the memory for all shards. Any number
of ranks reads either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facerec.models.checkpoint.file import MODULES as MODULES
from facerec.models.checkpoint.file import Checkpoint, FileCheckpoint, load_file
from facerec.models.checkpoint.file import Rows as Rows
from facerec.models.checkpoint.file import counter as counter
from facerec.models.checkpoint.file import is_counter as is_counter
from facerec.models.checkpoint.file import require_file as require_file
from facerec.models.checkpoint.file import save as save
from facerec.models.checkpoint.folder import FolderCheckpoint
from facerec.models.checkpoint.folder import is_folder as is_folder
from facerec.models.checkpoint.run import RunCheckpoints as RunCheckpoints
from facerec.models.checkpoint.run import checkpoint_path as checkpoint_path
from facerec.models.checkpoint.run import list_checkpoints as list_checkpoints
from facerec.models.checkpoint.run import newest_checkpoint as newest_checkpoint


def is_checkpoint(path: Path) -> bool:
    """Return True for a file or a finished checkpoint folder."""
    return path.is_file() or is_folder(path)


def load(path: Path | str) -> dict[str, Any]:
    """Read what a checkpoint holds onto the CPU; of a folder's sections backbone and ema alone.

    Nothing in it is run: what is neither a tensor nor a plain value comes as an `Inert` object, and the log
    names the classes of those.

    Raises:
        DamagedCheckpointError: not a checkpoint, or one whose bytes have changed.
        CheckpointError: no such file, one that cannot be read, or one without weights or settings.
    """
    path = Path(path)
    if not is_folder(path):
        return load_file(path)
    checkpoint = FolderCheckpoint(path)
    sections = ["backbone", "ema"] if checkpoint.has("ema") else ["backbone"]
    return checkpoint.rest | {section: checkpoint.read(section) for section in sections}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of a run; raises as `load` does."""
    return FolderCheckpoint(path) if is_folder(path) else FileCheckpoint(path)
