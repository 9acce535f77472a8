"""Base of all commands: exit status 0, 1 or 2, a mistake in one line, SIGTERM as Ctrl-C; and their parser."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from facerec import launch, plugins, process
from facerec.errors import FacerecError, LostContactError, UserError, machine_errors


def run_command(program: str, work: Callable[[], int | None]) -> NoReturn:
    """Run `work` and end the process with the command's exit status."""
    process.wait_briefly()
    sys.exit(stopped_by_sigterm(lambda: reported(program, work)))


def run_hydra_command(program: str, config_name: str, task: Callable[[dict[str, Any], Any], Any]) -> NoReturn:
    """Run `task(config, run_folder)` with the configuration composed from `config_name` and sys.argv."""

    def work() -> None:
        from facerec.cli.compose import compose_and_run

        compose_and_run(config_name, task)

    run_command(program, work)


class StoppedBySignal(KeyboardInterrupt):
    """A run that a signal has ended in good order: a sweep does not go on, and the exit status says so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def reported(program: str, work: Callable[[], int | None]) -> int:
    """Run `work` and return the exit status; a `FacerecError` becomes one line on standard error.

    ``FACEREC_TRACEBACK=1`` (or Hydra's ``HYDRA_FULL_ERROR=1``) shows where the error came from. Anything that
    is not a `FacerecError` is a bug of ours, or of the plugin that a note names, and keeps its traceback.
    """
    try:
        with machine_errors():
            launch.require_numbers()
            return work() or 0
    except FacerecError as error:
        if wants_traceback():
            raise
        # Mostly rank 0 makes the same mistake and says so, and the launcher ends the others. A rank that has
        # merely lost contact waits longer, for the one that knows the reason.
        time.sleep(6 if isinstance(error, LostContactError) else 2 if launch.rank() else 0)
        _say(program, str(error))
        return error.exit_status
    except BrokenPipeError:  # the reader (head, less) has gone: nobody is left to tell
        return 0
    except StoppedBySignal as stopped:
        return stopped.exit_status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        plugins.note_origin(error)
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # closed, or full: the flush at exit must not complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(program: str, text: str) -> None:
    who = f"{program}[{launch.rank()}]" if launch.rank() else program
    with contextlib.suppress(OSError):  # a closed pipe here, too
        plain = " ".join(text.split())
        # Names out of files may hold control characters, which a terminal would obey.
        plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in plain)
        print(f"{who}: {plain}", file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Parser of a command's or sub-command's options; ``set_defaults(run=function)`` says what it does.

    Mistakes are one line, texts keep their lines, and ``~`` at the start of a path is the home folder, behind
    a ``=`` too, where a shell leaves it.
    """

    log_format = "%(message)s"

    def main(self) -> NoReturn:
        """Run the command line of this process and end it."""
        run_command(self.prog, lambda: self.run(sys.argv[1:]))

    def run(self, arguments: Sequence[str]) -> int:
        """Run a command line and return the exit status."""
        options = self.parse_args(arguments)
        logging.basicConfig(format=self.log_format, level=logging.INFO)
        return int(options.run(options) or 0)

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
    """Return the exit status of `work`; SIGTERM ends it as Ctrl-C does, so that unfinished files are removed.

    One of several ranks may wait in a collective, where nothing but the signal itself ends it.
    """
    if launch.world_size() > 1:
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
    """Return True if the user asked for tracebacks."""
    names = ("FACEREC_TRACEBACK", "HYDRA_FULL_ERROR")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)
