"""The output folder of a command: one command works in it at a time, and a refused one leaves no trace."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import logging.handlers
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from facerec import launch
from facerec.errors import FacerecError, StorageError, UserError, counted
from facerec.files import require_writable, storing, write_bytes

log = logging.getLogger(__name__)
file_only = logging.getLogger("facerec.file_only")  # what a terminal shows otherwise, for the log file
file_only.propagate = False
file_only.addHandler(logging.NullHandler())  # else Python prints what no file takes
_LOGGERS = (logging.getLogger(), file_only)

LOCK = ".lock"
RECORDS = ".hydra"
_made: list[Path] = []  # folders of this command that were not there before it, the innermost first


class LogStream(logging.StreamHandler[Any]):
    """Log lines on the console; failed writes are remembered, in place of a traceback for each line."""

    target = Path("standard output")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _unwritten.append((self.target, error))
        else:
            super().handleError(record)


class LogFile(LogStream, logging.FileHandler):
    """Log lines in a file, likewise."""

    @property
    def target(self) -> Path:  # type: ignore[override]
        return Path(self.baseFilename)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            _unwritten.append((self.target, error))


_unwritten: list[tuple[Path, OSError]] = []


def require_written(*, pipes: bool = True) -> None:
    """Raise `StorageError` where log lines could not be written since the last call.

    Args:
        pipes: also where it is only that nobody reads standard output any more.
    """
    first = next((one for one in _unwritten if pipes or not isinstance(one[1], BrokenPipeError)), None)
    _unwritten.clear()
    if first is not None:
        with storing(first[0]):
            raise first[1]


class RunFolder:
    """The folder of a command's output.

    A context manager around all that the command does. From `hold` on log lines wait in memory until `accept`
    opens the log file and writes the configuration. The reason of a failure is the log's last line. A command
    that fails before `accept` leaves the folder as it was.

    Args:
        config: the composed configuration, within Hydra's job.
        program: name of the command, for the log.
    """

    def __init__(self, config: DictConfig, program: str) -> None:
        self.path = Path(HydraConfig.get().runtime.output_dir)
        self.config = config
        self.program = f"{program}[{launch.rank()}]" if launch.rank() else program
        self._job, self._sweep = HydraConfig.get().job.name, HydraConfig.get().mode != RunMode.RUN
        self._lock: int | None = None
        held = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)
        self._handler: logging.Handler = held
        self._accepted = self._passing = False
        _unwritten.clear()  # what the log of a sweep's run before could not take

    @property
    def named(self) -> bool:
        """True where the command line names the folder, so that the same command has it again."""
        return any(one.startswith("output_dir=") for one in HydraConfig.get().overrides.task)

    def leave_no_trace(self) -> None:
        """Keep the folder as it was, as for a command that is refused.

        Raises:
            UserError: this is a run of a sweep, whose table would have nothing to show.
        """
        if self._sweep:
            hint = "leaves no run that a sweep could compare; call it without -m"
            raise UserError(f"trainer.dry_run=true: {hint}")
        self._passing = True

    def __enter__(self) -> RunFolder:
        return self

    def hold(self) -> None:
        """Take the folder for this command until it ends; of several processes the first one does.

        The lock goes with the process, however it ends. On a file system without locks a line is logged and
        nothing is held.

        Raises:
            UserError: another command is at work in it (the message names process and host), or nothing can
                be written there.
        """
        logging.captureWarnings(True)
        for logger in _LOGGERS:
            logger.addHandler(self._handler)
        path = self.path / LOCK
        while self._lock is None and not launch.rank():
            require_writable(self.path)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise UserError(f"output_dir={self.path}: cannot be written ({error.strerror})") from error
            try:
                # Not flock, whose locks a forked process keeps when this one is killed.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = os.read(lock, 300).decode(errors="replace").strip() or "another process"
                os.close(lock)
                raise UserError(
                    f"output_dir={self.path}: {holder} is at work in it; wait for its end, stop it, or give "
                    "another output_dir"
                ) from error
            except OSError as error:
                log.warning("%s: no locks here (%s), so that two runs would not notice", path, error.strerror)
            if _same_file(lock, path):  # else its holder has just ended and removed it
                self._lock = lock
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
            else:
                os.close(lock)

    def accept(self, path: Path | None = None) -> None:
        """Write the configuration, keep that of an earlier start beside it, and open the log file.

        Args:
            path: the folder, where this process is not the first one, which alone knows it; it adds its
                warnings and errors to the log.

        Raises:
            StorageError: they cannot be written.
        """
        path = path or self.path
        if not launch.rank():
            self._write_configuration()
        with storing(path):
            file = LogFile(path / f"{self._job}.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        assert isinstance(self._handler, logging.handlers.MemoryHandler)
        self._handler.setTarget(file)
        self._handler.close()
        self._replace_handler(file)
        self._accepted = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = error is not None and not self._accepted
        if refused and self._sweep and not (self.path / RECORDS).exists():
            with contextlib.suppress(StorageError):  # the error that brought us here is the one to tell
                self.accept()  # a row of the sweep's table, and its reason
        if isinstance(error, FacerecError):
            file_only.error("%s: %s", self.program, " ".join(str(error).split()))
        elif isinstance(error, KeyboardInterrupt):
            file_only.error("%s: interrupted", self.program)
        elif error is not None:
            file_only.error("%s: ended by an error of its own", self.program, exc_info=error)
        logging.captureWarnings(False)
        if error is None:
            require_written(pipes=False)
        self._replace_handler(None)
        if self._lock is not None:
            with contextlib.suppress(OSError):  # a folder that has vanished
                (self.path / LOCK).unlink()
            os.close(self._lock)
        if (refused or self._passing) and not self._sweep:
            discard(self.path)

    def _replace_handler(self, handler: logging.Handler | None) -> None:
        for logger in _LOGGERS:
            logger.removeHandler(self._handler)
            if handler is not None:
                logger.addHandler(handler)
        self._handler.close()
        self._handler = handler or logging.NullHandler()

    def _write_configuration(self) -> None:
        """The files that Hydra would write before anything is checked."""
        folder = self.path / RECORDS
        config: Any = HydraConfig.instance().cfg
        files = {
            "config.yaml": OmegaConf.to_yaml(self.config),
            "hydra.yaml": OmegaConf.to_yaml(config),
            "overrides.yaml": OmegaConf.to_yaml(config.hydra.overrides.task),
        }
        before = folder / "config.yaml"
        with storing(folder):
            if before.is_file() and before.read_text(encoding="utf-8") != files["config.yaml"]:
                shutil.copytree(folder, _unused(folder))
        for name, text in files.items():
            write_bytes(folder / name, text.encode(), durable=False)


def written_line(paths: Sequence[Path]) -> str:
    """Say what was written into a folder: the first document's path, names of others, number of figures."""
    documents = [path for path in paths if path.suffix not in (".png", ".svg", ".pdf")]
    figures = len(paths) - len(documents)
    beside = [path.name for path in documents[1:]] + ([counted(figures, "figure")] if figures else [])
    return f"wrote      {documents[0]}" + (f", and beside it {', '.join(beside)}" if beside else "")


def prepare(config: DictConfig, section: str) -> None:
    """Before Hydra makes the folder of a run (`section` ``run``) or of a sweep (``sweep``): note what is not
    there yet, and give a folder that is named after the time a name of its own.
    """
    settings = config.hydra[section]
    folder = Path(settings.dir)
    _made[:] = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
    if section == "sweep" and (folder / "multirun.yaml").is_file():
        (folder / "multirun.yaml").rename(_unused(folder / "multirun.yaml"))
    if "${now:" not in _as_given(config, f"hydra.{section}.dir"):
        return
    free = folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            free.mkdir()  # of two commands of the same second, one
            break
        except FileExistsError:
            free = _unused(folder, first=2, sign="-")
    if free != folder:
        with read_write(config), open_dict(config):
            settings.dir = str(free)
            config.hydra.overrides.hydra.append(f"hydra.{section}.dir='{free}'")  # for the runs of a sweep
        _made[:] = [free.absolute(), *(path for path in _made if path != folder.absolute())]


def discard(folder: Path) -> bool:
    """Remove a folder that this command has made, unless there is more in it than records of its start."""
    records = {"config.yaml", "hydra.yaml", "overrides.yaml", "multirun.yaml", "train.log", "eval.log"}
    if folder not in _made or {path.name for path in folder.rglob("*") if path.is_file()} - records:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    for path in _made:
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
    return True


def _as_given(config: DictConfig, key: str) -> str:
    """A setting as it was written, with interpolations of other settings followed and resolvers kept."""
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(config, parent) if parent else config
    text = str(node._get_node(name)._value())
    return _as_given(config, "output_dir") if text == "${output_dir}" else text


def _unused(path: Path, first: int = 1, sign: str = ".") -> Path:
    """The first of ``path.1``, ``path.2``, … that is not there; the number goes before an ending."""
    named = (path.with_name(f"{path.stem}{sign}{number}{path.suffix}") for number in itertools.count(first))
    return next(one for one in named if not one.exists())


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
