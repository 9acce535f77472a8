"""The last state of a run on disk: one file, or where classes are shared out over processes one folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facerec import checkpoint, processes, sharded_checkpoint
from facerec.training import state

FILE = "last.pt"


def find(checkpoints: Path) -> Path | None:
    """The complete last state of most steps in a run's folder of checkpoints, if there is one.

    A copy gives files any time, so it is the step that counts. Only a run killed between writing one kind and
    removing the other leaves both, and only then is the file read for its step.
    """
    file, folder = checkpoints / FILE, max(_folders(checkpoints), key=_step, default=None)
    if not file.is_file():
        return folder
    return folder if folder and _step(folder) > checkpoint.load(file).get("step", -1) else file


def place(checkpoints: Path, step: int, *, shared_out: bool) -> Path:
    """Where the state at `step` is or will be kept; `shared_out`: by several processes together."""
    folder = checkpoints / f"last-{step:08d}"
    return folder if shared_out or sharded_checkpoint.is_one(folder) else checkpoints / FILE


class LastCheckpoint:
    """Writes the last state; a newer one replaces the older only when it is complete.

    Args:
        checkpoints: the run's folder of checkpoints.
        background: let a shared-out state be written while the run goes on.
    """

    def __init__(self, checkpoints: Path, *, background: bool = False) -> None:
        self.checkpoints = checkpoints
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
                checkpoint.save(self.checkpoints / FILE, captured)
                self._only(self.checkpoints / FILE)
            return
        self.finish()
        folder = place(self.checkpoints, captured["step"], shared_out=True)
        if processes.rank() == 0:
            sharded_checkpoint.remove(folder)
        tensors, rows, rest = state.split(captured, held)
        self._under_way = sharded_checkpoint.save(folder, tensors, rows, rest, background=self.background)
        self._folder = folder
        if not self.background:
            self.finish()

    def finish(self) -> None:
        """Wait for a save under way; then it is the last state, and the one before it goes."""
        if self._under_way is not None:
            self._under_way.finish()
            self._under_way = None
            if processes.rank() == 0:
                self._only(self._folder)

    def _only(self, kept: Path) -> None:
        for folder in self.checkpoints.glob("last-*"):
            if folder != kept:
                sharded_checkpoint.remove(folder)
        if kept.name != FILE:
            (self.checkpoints / FILE).unlink(missing_ok=True)


def _folders(checkpoints: Path) -> list[Path]:
    named = [path for path in checkpoints.glob("last-*") if re.fullmatch(r"last-\d+", path.name)]
    return [path for path in named if sharded_checkpoint.is_one(path)]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("last-"))
