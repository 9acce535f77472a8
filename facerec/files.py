"""Atomic file writes: a file is complete under its name or absent; what killed processes left is removed.

What cannot be made or written is an OSError; `storing`, and so `replacing`, makes a StorageError of it.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import importlib.util
import io
import math
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from facerec.errors import FacerecError, StorageError, UserError

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
            sync(unfinished.file) if durable else unfinished.file.flush()
            unfinished.publish()
        finally:
            unfinished.drop()


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> Path:
    """Write a whole file as `replacing` does, and return its path."""
    with replacing(path, durable=durable) as file:
        file.write(content)
    return path


@contextlib.contextmanager
def replacing_both(path: Path, beside: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open two files that belong together and take their names at once, or are both removed.

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
        sync(first.file)
        sync(second.file)
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


def append_line(path: Path, line: bytes) -> None:
    """Append a complete line to a file of lines: in one write or not at all; one cut off is removed first."""
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a power cut in the middle of a write
                end = path.read_bytes().rfind(b"\n") + 1
                file.truncate(end)
        if file.write(line + b"\n") != len(line) + 1:
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync(file: BinaryIO) -> None:
    """Write out what is buffered, as far as the disk: whatever cannot be written fails here."""
    file.flush()
    os.fsync(file.fileno())


class Unfinished:
    """A file being written under a temporary name beside `target`, locked as long as it is open."""

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
    """Make a folder under a temporary name beside `target`, to be renamed; what is left of it is removed."""
    with _parents(target), contextlib.ExitStack() as stack:
        stage = _temporary(target)
        stack.callback(shutil.rmtree, stage, ignore_errors=True)  # before: Ctrl-C may come at any moment
        stage.mkdir()
        handle = os.open(stage, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        _lock(handle)
        yield stage


@contextlib.contextmanager
def nameless(folder: Path) -> Iterator[BinaryIO]:
    """Open a file without a name in `folder`, which is made; however the process ends, nothing is left."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        yield file


@contextlib.contextmanager
def resumable_staging(stage: Path, journal: str, *, wait: bool = False) -> Iterator[None]:
    """Make the folder `stage`, or take it up again, for this process alone.

    It is removed at the end, unless it holds a file called `journal`: then the next one may go on.

    Raises:
        BlockingIOError: another process has it, and no `wait`.
    """
    with _parents(stage), _locked(stage, wait):
        try:
            yield
        finally:
            if not (stage / journal).exists():
                shutil.rmtree(stage, ignore_errors=True)


def _locked(stage: Path, wait: bool) -> BinaryIO:
    """The file `lock` in the folder `stage`, both made where they are missing, open and locked."""
    while True:
        _require_own(stage)  # in a shared folder it may be somebody else's
        stage.mkdir(exist_ok=True)
        path = stage / "lock"
        # The process that had it may remove the folder at any moment.
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                stack.pop_all()
                return file


def _require_own(stage: Path) -> None:
    """Raise `UserError` where writing to `stage` would write elsewhere, or wait for a reader."""
    strange = [str(stage)] if stage.is_symlink() else []
    if not strange:
        with contextlib.suppress(FileNotFoundError), os.scandir(stage) as entries:
            strange = [entry.path for entry in entries if not entry.is_file(follow_symlinks=False)]
    for path in strange[:1]:
        raise UserError(f"{path}: is a link or no file, and nothing of facerec-data; remove it")


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folders above `path`; those in which nothing came to lie are removed at the end."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def publish(stage: Path, out: Path, names: Iterable[str] | None = None) -> None:
    """Give files of `stage` their names in `out`, in this order; None: all at once, where `out` is empty."""
    if names is None:
        stage.replace(out)
    for name in names or ():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(target)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM for a few renames."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_package(package: str, path: str) -> Path | None:
    """Return a file or folder of an installed package, which is not imported; None where it is not there."""
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations or []) if spec is not None else []
    return next((Path(place) / path for place in places if (Path(place) / path).exists()), None)


def refuse_overwriting(path: Path, force: bool) -> None:
    """Raise `UserError` where `path` is there and may not be replaced."""
    if path.exists() and not force:
        raise UserError(f"{path}: is already there; --force replaces it")


def why_not_writable(folder: Path) -> str:
    """The reason why files cannot be put into `folder`, which is made where it is missing; empty: they can.

    Its permission bits bind root, too.
    """
    try:
        if folder.exists() and not folder.stat().st_mode & 0o222:
            return os.strerror(errno.EACCES)
        Unfinished(folder / "probe").drop()
        return ""
    except OSError as error:
        return error.strerror or type(error).__name__


def require_writable(folder: Path) -> None:
    """Raise `UserError` where files cannot be put into the folder of a run."""
    if reason := why_not_writable(folder):
        raise UserError(f"output_dir={folder}: cannot be written ({reason})")


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
