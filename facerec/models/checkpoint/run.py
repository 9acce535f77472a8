"""The checkpoints in the folder of a run: their names, how many are kept, and which one a resume reads."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from facerec import distributed
from facerec.errors import CheckpointError, DamagedCheckpointError
from facerec.files import replacing, sync
from facerec.models.checkpoint.file import Rows, counter, load_file
from facerec.models.checkpoint.folder import FolderSave, is_folder, remove

log = logging.getLogger(__name__)
Read = TypeVar("Read")

_FILE = "last.pt"
_FILES = re.compile(r"last(?:\.(\d+))?\.pt")
_FOLDERS = re.compile(r"last-(\d+)(?:\.saving)?")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a run's folder of checkpoints, if there is one."""
    return next(iter(list_checkpoints(folder)), None)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a run's folder, newest first.

    Copied files have any modification time, so the step decides. Files are read for theirs only where there
    are folders too, which is so for a few saves after the world size has changed from or to 1.
    """
    names = {path: _FILES.fullmatch(path.name) for path in folder.glob("last*.pt") if path.is_file()}
    ages = {path: int(name[1] or 0) for path, name in names.items() if name}
    files = sorted(ages, key=ages.__getitem__)
    folders = [path for path in folder.glob("last-*") if _FOLDERS.fullmatch(path.name) and is_folder(path)]
    if not folders:
        return files
    return sorted([*files, *folders], key=_step, reverse=True)


def checkpoint_path(folder: Path, step: int, *, sharded: bool) -> Path:
    """Return the path of the checkpoint at `step`, now or once it is saved."""
    path = folder / f"last-{step:08d}"
    return path if sharded or is_folder(path) else folder / _FILE


class RunCheckpoints:
    """Saves the states of a run, each of which counts once it is complete, and falls back on earlier ones.

    Args:
        folder: the run's folder of checkpoints.
        keep: how many states to keep, 1 or more: files are ``last.pt``, ``last.1.pt`` for the one before, ….
        background: write sharded states while the run goes on.
    """

    def __init__(self, folder: Path, *, keep: int = 2, background: bool = False) -> None:
        self.folder = folder
        self.keep = keep
        self.background = background
        self._under_way: tuple[FolderSave, Path] | None = None

    def save(self, state: Mapping[str, Any], shards: Mapping[str, Rows]) -> None:
        """Save a state with this rank's shards, and the rows that these are; every rank calls this.

        Raises:
            StorageError: it could not be written; the one before is still there.
        """
        if not shards:
            if distributed.rank() == 0:
                self._save_file(state)
            return
        self.finish()
        path = checkpoint_path(self.folder, state["step"], sharded=True)
        unfinished = path.with_name(f"{path.name}.saving")
        if distributed.rank() == 0:
            remove(unfinished)
        saving = FolderSave(unfinished, state, shards, background=self.background)
        self._under_way = saving, path
        if not self.background:
            self.finish()

    def finish(self) -> None:
        """Wait for a save under way; then it is the newest state, and those beyond `keep` are removed."""
        if self._under_way is None:
            return
        (saving, path), self._under_way = self._under_way, None
        saving.finish()
        if distributed.rank() == 0:
            remove(path)  # of the same step
            saving.folder.replace(path)
            self._remove_older(path)

    def read(self, path: Path, read: Callable[[Path], Read]) -> tuple[Path, Read]:
        """Read a state, or where it is damaged the newest before it; every rank calls this.

        A damaged one is renamed, so that it counts no more. States of other folders have no substitute.

        Returns:
            The path that was read, and what `read` returned for it.
        """
        damage = result = None
        try:
            result = read(path)
        except DamagedCheckpointError as error:
            damage = error
        damage = next(filter(None, distributed.all_gather_object(damage)), None)
        if damage is None:
            return path, result  # type: ignore[return-value]
        states = distributed.broadcast_object(list_checkpoints(self.folder))
        older = states[states.index(path) + 1 :] if path in states else []
        if not older:
            raise damage
        aside = path.with_name(f"{path.name}.damaged")
        if distributed.rank() == 0:
            remove(aside)
            path.replace(aside)
        distributed.all_gather_object(None)  # no rank goes on before it is renamed
        log.warning("%s; it is now called %s, and the run goes on from %s", damage, aside.name, older[0])
        return self.read(older[0], read)

    def _save_file(self, state: Mapping[str, Any]) -> None:
        path = self.folder / _FILE
        names = [path, *(path.with_name(f"last.{i}.pt") for i in range(1, self.keep))]
        with replacing(path) as file:
            torch.save(dict(state), file)
            sync(file)  # what cannot be written fails before a former state is renamed
            for newer, older in reversed(list(pairwise(names))):
                if newer.is_file():
                    newer.replace(older)
        self._remove_older(path)

    def _remove_older(self, newest: Path) -> None:
        """Remove the states beyond those to keep, and saves that were never finished."""
        keep = [newest, *(path for path in list_checkpoints(self.folder) if path != newest)][: self.keep]
        for path in self.folder.glob("last*"):
            if path in keep:
                continue
            if _FOLDERS.fullmatch(path.name):
                remove(path)
            elif _FILES.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _step(path: Path) -> float:
    """Return the step of a checkpoint; infinite if it cannot be read, so that it is tried and reported."""
    if folder := _FOLDERS.fullmatch(path.name):
        return int(folder[1])
    try:
        step = counter(load_file(path), "step", str(path))
    except CheckpointError:
        step = None
    return float("inf") if step is None else step
