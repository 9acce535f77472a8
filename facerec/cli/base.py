"""Base of all commands: exit status 0, 1 or 2, a mistake in one line, SIGTERM as Ctrl-C; and their parser."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import inspect
import logging
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeAlias

import facerec
from facerec import launch, plugins, process
from facerec.cli.mistakes import require_filled_in
from facerec.errors import FacerecError, LostContactError, UserError, machine_errors, nearest, printable

Work: TypeAlias = Callable[[argparse.Namespace], int | None]
Option: TypeAlias = tuple[str, dict[str, Any]]

_FIRST_WORDS = """\
facerec-train trains a face-recognition backbone. To type first:

  facerec-train experiment=orl_demo                    real faces, two minutes on a CPU, nothing to get
  facerec-train data=folder data.root=ALIGNED          your faces, aligned, one folder per identity
  facerec-train experiment=arcface_casia_ir50          a recipe; says what to get, and where to put it

then facerec-eval, facerec-export and facerec-embed ckpt=RUN/checkpoints/best.pt. --help lists all settings,
--explain says what they mean; `facerec-data pack --align` makes aligned faces of photographs."""


def version_line(program: str) -> str:
    """Return the versions that a report of a bug should name."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{program} {facerec.__version__} (torch {metadata.version('torch')}, Python {python})"


def run_command(program: str, work: Callable[[], int | None]) -> NoReturn:
    """Run `work` and end the process with the command's exit status."""
    process.wait_briefly()
    sys.exit(stopped_by_sigterm(lambda: reported(program, work)))


def run_hydra_command(program: str, config_name: str, task: Callable[[dict[str, Any], Any], Any]) -> NoReturn:
    """Run `task(config, run_folder)` with the configuration composed from `config_name` and sys.argv."""

    def work() -> None:
        if "--version" in sys.argv[1:]:
            print(version_line(program))
            return
        if config_name == "train" and not sys.argv[1:] and launch.world_size() == 1:
            print(_FIRST_WORDS)
            return
        from facerec.cli.compose import compose_and_run, explain

        if "--explain" in sys.argv[1:]:
            print("\n".join(explain(config_name, sys.argv[1:])))
        else:
            if not {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"} & set(sys.argv[1:]):
                from facerec.progress import say

                say(f"{program}: loading PyTorch …")
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
        if {os.environ.get(name, "0") for name in ("FACEREC_TRACEBACK", "HYDRA_FULL_ERROR")} - {"", "0"}:
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
    except KeyboardInterrupt as signalled:
        print(f"{program}: interrupted", file=sys.stderr)
        return signalled.args[0] if signalled.args else 130
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
        print(f"{who}: {printable(' '.join(text.split()))}", file=sys.stderr, flush=True)


def option(name: str, help: str, **settings: Any) -> Option:
    """Return the arguments of `ArgumentParser.add_argument`; a default is said, and gives the type."""
    default = settings.get("default")
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        settings = {"type": type(default)} | settings
        help = f"{help} (default: {default})".lstrip()
    return name, settings | {"help": help}


class Program:
    """A command whose work is functions of its parsed options: one, or one for each sub-command.

    Args:
        name: as it is typed.
        about: what it does, where it has sub-commands.
        log_format: of the lines of its log.
    """

    def __init__(self, name: str, about: str = "", log_format: str = "%(message)s") -> None:
        self.name, self.about, self.log_format = name, about, log_format
        self.commands: dict[str, tuple[Work, tuple[Option | str, ...], str]] = {}

    def command(self, name: str = "", *options: Option | str, help: str = "") -> Callable[[Work], Work]:
        """Return a decorator that makes a function a sub-command; without a name, the command itself.

        A text among the options is the heading that those after it stand under in the help.

        `help`, else the function's docstring, is the help: a title, a paragraph, and whatever stands below
        the options, an example at least. It returns the exit status, None for 0. What the work needs is
        imported in the function, so that ``--help`` stays quick.
        """

        def keep(work: Work) -> Work:
            self.commands[name] = work, options, help or inspect.getdoc(work) or ""
            return work

        return keep

    def main(self) -> NoReturn:
        """Run the command line of this process and end it; or complete it, where a shell asks for that."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self.parser())
        run_command(self.name, lambda: self.run(sys.argv[1:]))

    def run(self, arguments: Sequence[str]) -> int:
        """Run a command line and return the exit status."""
        options = self.parser().parse_args(arguments)
        logging.basicConfig(format=self.log_format, level=logging.INFO)
        return int(options.run(options) or 0)

    def parser(self) -> Parser:
        """Return the parser of all its options."""
        if "" in self.commands:
            return self._parser_of("", lambda **settings: Parser(prog=self.name, **settings))
        parser = Parser(prog=self.name, description=self.about)
        nested = parser.add_subparsers(metavar="SUBCOMMAND", required=True, dest="command")
        for name, (_, _, help) in sorted(self.commands.items()):
            title = help.strip().partition("\n")[0].rstrip(".")
            said = title[0].lower() + title[1:]
            self._parser_of(name, functools.partial(nested.add_parser, name, help=said))
        return parser

    def _parser_of(self, name: str, make: Callable[..., Parser]) -> Parser:
        work, options, help = self.commands[name]
        title, text, *epilog = help.strip().split("\n\n")
        parser = make(description=" ".join(f"{title} {text}".split()), epilog="\n\n".join(epilog))
        group: Any = parser
        for one in options:
            if isinstance(one, str):
                group = parser.add_argument_group(one)
            else:
                group.add_argument(one[0], **one[1])
        parser.set_defaults(run=work)
        return parser


class Parser(argparse.ArgumentParser):
    """Parser of a command's or sub-command's options.

    Mistakes are one line, texts keep their lines, and ``~`` at the start of a path is the home folder, behind
    a ``=`` too, where a shell leaves it.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        settings.setdefault("allow_abbrev", False)
        settings["description"] = textwrap.fill(settings.get("description", ""), 80)
        super().__init__(**settings)
        if " " not in self.prog:
            self.add_argument("--version", action="version", version=version_line(self.prog))
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))  # noqa: PTH111 - as shells do

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; ``ckpt=PATH`` is ``--ckpt=PATH``, and ``--batch_size`` is ``--batch-size``, too."""
        words = list(map(str, sys.argv[1:] if args is None else args))
        require_filled_in(words)
        return super().parse_known_args([self._as_option(word) for word in words], namespace)

    def _as_option(self, word: str) -> str:
        name, equals, value = word.partition("=")
        option = "--" + name.removeprefix("--").replace("_", "-")
        action = self._option_string_actions.get(option)
        if action is None or (not name.startswith("-") and (not equals or Path(word).exists())):
            return word
        if action.nargs == 0 and value == "true":
            return option
        return option + equals + value

    def error(self, message: str) -> NoReturn:
        name = self.prog.partition(" ")[2]
        raise UserError(f"{name + ': ' if name else ''}{self._nearer(message)}; see `{self.prog} --help`")

    def _nearer(self, message: str) -> str:
        """A message of argparse's about an unknown word or wrong value, with what may be meant."""
        nested = [one for one in self._actions if isinstance(one, argparse._SubParsersAction)]
        chosen = re.match(r"argument SUBCOMMAND: invalid choice: '(.*)' \(choose from", message)
        if chosen and nested:
            return f"{chosen[1]}: no such subcommand; {nearest(chosen[1], nested[0].choices)}"
        wrong = re.match(r"argument (?:-\w/)?(--[\w-]+): invalid (int|float) value: '(.*)'", message)
        if wrong:
            kind = {"int": "an integer", "float": "a number"}[wrong[2]]
            return f"{wrong[1]}={wrong[3]}: must be {kind}"
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        parsers = [self, *(parser for one in nested for parser in one.choices.values())]
        options = {name for parser in parsers for name in parser._option_string_actions}
        close = difflib.get_close_matches(unknown[1], options, n=1) if unknown else []
        return f"{message}; did you mean {close[0]}?" if close else message


def stopped_by_sigterm(work: Callable[[], int]) -> int:
    """Return the exit status of `work`; SIGTERM ends it as Ctrl-C does, so that unfinished files are removed.

    One of several ranks may wait in a collective, where nothing but the signal itself ends it.
    """
    if launch.world_size() > 1:
        return work()

    def terminate(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return work()
    finally:
        signal.signal(signal.SIGTERM, before)
