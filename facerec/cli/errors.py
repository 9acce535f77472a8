"""How every command ends: exit status 0, 1 or 2, and one line that says what to mend."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from facerec.errors import FacerecError, LostContactError, StorageError, UserError
from facerec.launch import launched, place, require_numbers

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENODEV)


def reported(program: str, work: Callable[[], int | None]) -> int:
    """Run `work` and return the exit status; a `FacerecError` becomes one line on standard error.

    ``FACEREC_TRACEBACK=1`` (or Hydra's ``HYDRA_FULL_ERROR=1``) shows where the error came from. Anything that
    is not a `FacerecError` is a bug of ours and keeps its traceback.
    """
    try:
        with machine_errors():
            require_numbers()
            return work() or 0
    except FacerecError as error:
        if wants_traceback():
            raise
        # Mostly the first process makes the same mistake and says so, and what started them ends the others.
        # One that has merely lost the others waits longer, for the one that knows the reason.
        time.sleep(6 if isinstance(error, LostContactError) else 2 if place() else 0)
        _say(program, str(error))
        return error.exit_status
    except BrokenPipeError:  # the reader (head, less) has gone: nobody is left to tell
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # closed, or full: the flush at exit must not complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(program: str, text: str) -> None:
    who = f"{program}[{place()}]" if place() else program
    with contextlib.suppress(OSError):  # a closed pipe here, too
        plain = " ".join(text.split())
        # Names out of files: a terminal prints what it would obey.
        plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in plain)
        print(f"{who}: {plain}", file=sys.stderr, flush=True)


@contextmanager
def machine_errors() -> Iterator[None]:
    """Raise a `FacerecError` where memory, a device's too, does not suffice, or a disk is full, failing, gone
    or read-only, or a path forbidden, too long or in circles: that is no bug of ours, wherever it shows.
    """
    try:
        yield
    except OSError as error:
        named = isinstance(error.filename, str | bytes)
        if isinstance(error, BrokenPipeError) or not (named or error.errno in _STORAGE):
            raise
        what = os.fsdecode(error.filename) if named else "a file"
        raise StorageError(f"{what} could not be read or written: {error.strerror}") from error
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].strip()
        # torch has a class for a device's memory alone.
        told = any(sign in reason for sign in ("can't allocate memory", "not enough memory"))
        if not (told or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        raise FacerecError(
            f"out of memory: {reason or 'none was left'}; lower trainer.batch_size or eval.batch_size, or "
            "take trainer.precision=bf16 or trainer.checkpoint_activations=true"
        ) from error


class Parser(argparse.ArgumentParser):
    """Mistakes in one line, as everywhere else; texts keep their lines.

    ``~`` at the start of a path is the home folder, behind a ``=`` too, where a shell leaves it.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        settings.setdefault("allow_abbrev", False)
        lines = str(settings.get("description", "")).splitlines()
        settings["description"] = "\n".join(x if x.startswith(" ") else textwrap.fill(x, 80) for x in lines)
        super().__init__(**settings)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))  # noqa: PTH111 - as shells do

    def error(self, message: str) -> NoReturn:
        name = self.prog.partition(" ")[2]
        raise UserError(f"{name + ': ' if name else ''}{message}; see `{self.prog} --help`")


def stopped_by_sigterm(work: Callable[[], int]) -> int:
    """The exit status of `work`; SIGTERM ends it as Ctrl-C does, so that files half made are removed.

    One of several processes may wait for the others, where nothing but the signal itself ends it.
    """
    if launched() > 1:
        return work()
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        status = work()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 128 + signal.SIGTERM if terminated else status


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return any(
        os.environ.get(name, "0") not in ("", "0") for name in ("FACEREC_TRACEBACK", "HYDRA_FULL_ERROR")
    )
