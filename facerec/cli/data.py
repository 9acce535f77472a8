"""`facerec-data SUBCOMMAND`: look after data sets. Each module of `data_commands` is a sub-command."""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
import sys
from collections.abc import Sequence
from typing import TypeAlias

from facerec.cli import data_commands
from facerec.cli.errors import Parser, reported, stopped_by_sigterm

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def main() -> None:
    """Entry point of the console script. SIGTERM ends it as Ctrl-C does: files half made are removed."""
    sys.exit(stopped_by_sigterm(lambda: reported("facerec-data", lambda: run(sys.argv[1:]))))


def run(arguments: Sequence[str]) -> int:
    """Execute a command line; returns the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    return int(options.run(options) or 0)


def parser() -> Parser:
    """Return the parser with all sub-commands."""
    made = Parser(prog="facerec-data", description="Look after data sets.")
    commands = made.add_subparsers(metavar="SUBCOMMAND", required=True, dest="command")
    for name in sorted(module.name for module in pkgutil.iter_modules(data_commands.__path__)):
        _add(commands, name)
    return made


def _add(commands: Commands, name: str) -> None:
    """Add a sub-command; its help is the module's docstring."""
    module = importlib.import_module(f"{data_commands.__name__}.{name}")
    title, text, *epilog = (module.__doc__ or f"{name}.\n\n").strip().split("\n\n")
    parser = commands.add_parser(
        name,
        help=title[0].lower() + title[1:].rstrip("."),
        description=" ".join(f"{title} {text}".split()),
        epilog="\n\n".join(epilog),
    )
    module.add_options(parser)
    parser.set_defaults(run=module.run)
