"""The last states of a run on disk: files, or where classes are shared out over processes folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from facerec import checkpoint, processes, sharded_checkpoint
from facerec.errors import CheckpointError, DamagedCheckpointError
from facerec.files import storing
from facerec.training import state

log = logging.getLogger(__name__)
Read = TypeVar("Read")

FILE = "last.pt"
_FOLDER = re.compile(r"last-(\d+)(?:\.again)?")  # the latter: of a step that was saved before


def find(checkpoints: Path) -> Path | None:
    """The newest complete last state in a run's folder of checkpoints, if there is one."""
    return next(iter(kept(checkpoints)), None)


def kept(checkpoints: Path) -> list[Path]:
    """The complete last states in a run's folder of checkpoints, newest first.

    A copy gives files any time, so it is the step that counts. Files are read for theirs only where there are
    folders too, which is so for a few saves after the number of processes has changed from or to one.
    """
    files = [path for path in checkpoints.glob("last*.pt") if _place(path) is not None]
    files.sort(key=lambda path: _place(path) or 0)
    folders = [path for path in checkpoints.glob("last-*") if _FOLDER.fullmatch(path.name)]
    folders = sorted(filter(sharded_checkpoint.is_one, folders), key=_step, reverse=True)
    return sorted([*files, *folders], key=_step, reverse=True) if files and folders else files or folders


def place(checkpoints: Path, step: int, *, shared_out: bool) -> Path:
    """Where the state at `step` is or will be kept; `shared_out`: by several processes together."""
    folder = checkpoints / f"last-{step:08d}"
    return folder if shared_out or sharded_checkpoint.is_one(folder) else checkpoints / FILE


class LastCheckpoint:
    """Writes the last state; it counts only when it is complete, and the ones before it are kept.

    Args:
        checkpoints: the run's folder of checkpoints.
        keep: how many states to keep, 1 or more: files are ``last.pt``, ``last.1.pt`` for the one before, ….
        background: let a shared-out state be written while the run goes on.
    """

    def __init__(self, checkpoints: Path, *, keep: int = 2, background: bool = False) -> None:
        self.checkpoints = checkpoints
        self.keep = keep
        self.background = background
        self._under_way: sharded_checkpoint.Saving | None = None

    def save(self, captured: dict[str, Any], held: Mapping[str, sharded_checkpoint.Rows]) -> None:
        """Write what `state.capture` has captured; every process calls this.

        Args:
            captured: the state, where rows are shared out with this process's part of them.
            held: from `state.held_rows`.

        Raises:
            StorageError: it could not be written; the one before is still there.
        """
        if not held:
            if processes.rank() == 0:
                self._shift()
                checkpoint.save(self.checkpoints / FILE, captured)
                self._only(self.checkpoints / FILE)
            return
        self.finish()
        folder = self._place = place(self.checkpoints, captured["step"], shared_out=True)
        if processes.from_first(
            sharded_checkpoint.is_one(folder)
        ):  # what is there counts until the other does
            folder = folder.with_name(f"{folder.name}.again")
        if processes.rank() == 0:
            sharded_checkpoint.remove(folder)
        tensors, rows, rest = state.split(captured, held)
        self._under_way = sharded_checkpoint.save(folder, tensors, rows, rest, background=self.background)
        self._folder = folder
        if not self.background:
            self.finish()

    def finish(self) -> None:
        """Wait for a save under way; then it is the last state, and what is older than those to keep goes."""
        if self._under_way is not None:
            self._under_way.finish()
            self._under_way = None
            if processes.rank() == 0:
                if self._folder != self._place:
                    sharded_checkpoint.remove(self._place)
                    self._folder.replace(self._place)
                self._only(self._place)

    def _shift(self) -> None:
        """Give each file the name of an older one; `FILE` stays until a new one takes its place."""
        file = self.checkpoints / FILE
        with storing(file):
            older = [file, *(file.with_name(f"last.{i}.pt") for i in range(1, self.keep))]
            for newer, name in reversed(list(pairwise(older))):
                if not newer.is_file():
                    continue
                if newer != file:
                    newer.replace(name)
                    continue
                name.unlink(missing_ok=True)
                try:
                    os.link(newer, name)
                except OSError:  # a file system without links: while the save takes, there is no last.pt
                    newer.replace(name)

    def _only(self, newest: Path) -> None:
        """Remove what is not among the states to keep, and saves that were never finished."""
        keep = [newest, *(path for path in kept(self.checkpoints) if path != newest)][: self.keep]
        for path in self.checkpoints.glob("last*"):
            if path in keep:
                continue
            if _FOLDER.fullmatch(path.name):
                sharded_checkpoint.remove(path)
            elif _place(path) is not None:
                path.unlink(missing_ok=True)


def intact(path: Path, own: Path, read: Callable[[Path], Read]) -> tuple[Path, Read]:
    """What `read` makes of the last state at `path`, or where that is damaged of the newest before it.

    A damaged one is renamed, so that it counts no more. Every process calls this.

    Args:
        path: the state to read.
        own: the run's folder of checkpoints; those of other folders are not replaced by others.
        read: raises `DamagedCheckpointError`.

    Returns:
        The path that was read, and what `read` returned.
    """
    damage = found = None
    try:
        found = read(path)
    except DamagedCheckpointError as error:
        damage = error
    damage = next(filter(None, processes.each(damage)), None)
    if damage is None:
        return path, found  # type: ignore[return-value]
    states = kept(own)
    older = states[states.index(path) + 1 :] if path in states else []
    if not processes.from_first(older):
        raise damage
    aside = path.with_name(f"{path.name}.damaged")
    if processes.rank() == 0:
        sharded_checkpoint.remove(aside)
        path.replace(aside)
    older = processes.from_first(older)  # nobody goes on before it is renamed
    log.warning("%s; it is now called %s, and the run goes on from %s", damage, aside.name, older[0])
    return intact(older[0], own, read)


def _place(file: Path) -> int | None:
    """How many newer ones there are of a file of a last state, by its name; None for other files."""
    named = re.fullmatch(r"last(?:\.(\d+))?\.pt", file.name)
    return int(named[1] or 0) if named and file.is_file() else None


def _step(path: Path) -> float:
    """The step of a state; one that cannot be read counts as the newest, so that it is tried, and told."""
    if folder := _FOLDER.fullmatch(path.name):
        return int(folder[1])
    try:
        step = checkpoint.count(checkpoint.load(path), "step", str(path))
    except CheckpointError:
        step = None
    return float("inf") if step is None else step
