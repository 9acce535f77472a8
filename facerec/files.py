"""Atomic file writes: a file is whole under its name or absent, and what killed processes left is removed."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from facerec.errors import FacerecError, StorageError

_STALE: Final = 10.0  # seconds without a write after which an unlocked temporary is given up
_BUFFER: Final = 1 << 20
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠")  # some take the wide ones too
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` at the end of the block, and is removed at an exception.

    Args:
        path: replaced where it is there; its folder is made where it is not.
        durable: wait until the disk has the content before the name changes.

    Raises:
        StorageError: the disk is full or the folder cannot be written; what was at `path` is still there.
    """
    with storing(path):
        unfinished = Unfinished(path)
        try:
            yield unfinished.file
            unfinished.sync(durable=durable)
            unfinished.publish()
        finally:
            unfinished.drop()


@contextlib.contextmanager
def replacing_both(path: Path, beside: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open two files that belong together and take their names together, or are both removed.

    Where nothing is written to the second, there is none called `beside` afterwards. A former one never
    stands beside the new `path`: a kill between the renames leaves none.

    Raises:
        StorageError: one could not be written; what was there before still is.
    """
    with storing(path), contextlib.ExitStack() as stack:
        both = []
        for target in (path, beside):
            both.append(Unfinished(target))
            stack.callback(both[-1].drop)
        first, second = both
        yield first.file, second.file
        first.sync()
        second.sync()
        former = _temporary(beside)
        with contextlib.suppress(FileNotFoundError):
            beside.rename(former)
        stack.callback(former.unlink, missing_ok=True)
        try:
            first.publish()
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                former.rename(beside)
            raise
        if os.fstat(second.file.fileno()).st_size:
            second.publish()


def csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    """Lines of a CSV file, quoted where they must be, in UTF-8 (other bytes of file names as they are).

    A text that a spreadsheet would take for a formula gets an apostrophe before it, numbers do not:
    https://owasp.org/www-community/attacks/CSV_Injection
    """
    lines = []
    for row in rows:
        text = io.StringIO(newline="")
        csv.writer(text).writerow([_cell(one) for one in row])  # with "\n" alone it would not quote a "\r"
        lines.append(text.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _cell(value: object) -> object:
    if not isinstance(value, str) or value[:1] not in _FORMULA:
        return value
    with contextlib.suppress(ValueError):  # −0.5 is a number
        return value if math.isfinite(float(value)) else "'" + value
    return "'" + value


class Unfinished:
    """A file being written under a temporary name beside `target`, locked as long as it is open.

    Raises:
        OSError: it cannot be made, here and in every method; see `storing`.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        if not target.is_symlink() and target.exists() and not (target.is_file() or target.is_dir()):
            # A rename would put a file where a device or pipe is.
            raise OSError(errno.EINVAL, "not a regular file", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = _temporary(target)
        handle = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        _lock(handle)
        self.file: BinaryIO = os.fdopen(handle, "wb", buffering=_BUFFER)

    def sync(self, *, durable: bool = True) -> None:
        """Write out what is buffered; `durable` waits for the disk."""
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Give the file its name."""
        self._temporary.replace(self.target)
        self.file.close()

    def drop(self) -> None:
        """Remove the file, unless it has its name already."""
        with contextlib.suppress(OSError):  # a full disk may fail the last flush too
            self.file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Make a folder under a temporary name beside `target`, to be renamed; what is left of it is removed.

    Raises:
        OSError: it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = _temporary(target)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, stage, ignore_errors=True)  # before: Ctrl-C may come at any moment
        stage.mkdir()
        handle = os.open(stage, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        _lock(handle)
        yield stage


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failed write inside the block into a `StorageError` that names `path` and the space left."""
    try:
        yield
    except FacerecError:
        raise
    except Exception as error:
        cause = _os_error_behind(error)
        if cause is None:
            raise
        raise StorageError(_why_not_written(path, cause)) from error


def clear(folder: Path, name: str = "*") -> None:
    """Remove the temporaries of `folder` (of its files called `name`) that no process has open any more."""
    made_here = re.compile(r"\..+\.\w+\.tmp" if name == "*" else rf"\.{re.escape(name)}\.\w+\.tmp")
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            # Young ones are left alone: one just made may not be locked yet.
            if not made_here.fullmatch(path.name) or time.time() - path.lstat().st_mtime < _STALE:
                continue
            with contextlib.suppress(OSError):
                handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                finally:
                    os.close(handle)


def _temporary(target: Path) -> Path:
    """A new hidden name beside `target`, whose stale ones are removed."""
    clear(target.parent, target.name)
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _lock(handle: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks: then nothing is ever cleared there
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _os_error_behind(error: BaseException | None) -> OSError | None:
    """The failed write, which torch's own writer covers with an error about positions in the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _why_not_written(path: Path, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    free = ""
    for folder in path.absolute().parents if error.errno in _FULL else ():
        with contextlib.suppress(OSError):  # not there; or the disk has vanished, and nothing can be asked
            free = f" ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free)"
            break
    return f"{path} could not be written: {reason}{free}; what was there before is kept"
