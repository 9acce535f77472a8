"""Files that appear whole under their names, or not at all, and what a killed process left of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_STALE: Final = 10.0  # seconds without a write after which an unlocked temporary file is given up
_RANDOM: Final = re.compile(r"[a-z0-9_]{8}")  # what mkstemp adds


@contextlib.contextmanager
def whole_file(target: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `target` at the end of the block; it is removed at an exception.

    Args:
        target: replaced where it is there.
        durable: wait until the disk has the content before the name changes.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    file, temporary = open_temporary(target)
    try:
        with file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_temporary(target: Path) -> tuple[BinaryIO, Path]:
    """A new hidden file beside `target`, locked while it is open; those of dead processes are removed."""
    _clear(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    with contextlib.suppress(OSError):  # a file system without locks: then nothing is ever cleared there
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.fdopen(handle, "wb", buffering=1 << 20), Path(name)


def _clear(target: Path) -> None:
    """Remove temporary files of `target` that nobody has open any more."""
    prefix = f".{target.name}."
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if not path.name.startswith(prefix) or not _RANDOM.fullmatch(path.name[len(prefix) :]):
                continue
            # Young ones are left alone: one just made may not be locked yet.
            if time.time() - path.stat().st_mtime < _STALE:
                continue
            with path.open("r+b") as file, contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
