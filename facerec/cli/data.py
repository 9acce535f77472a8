"""`facerec-data SUBCOMMAND`: look after data sets. Each module of `data_commands` is a sub-command."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Sequence
from typing import TypeAlias

from facerec.cli import data_commands
from facerec.cli.base import Parser

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def main() -> None:
    """Entry point of the console script."""
    parser().main()


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit status."""
    return parser().run(arguments)


def parser() -> Parser:
    """Return the parser of all sub-commands."""
    parser = Parser(prog="facerec-data", description="Look after data sets.")
    parser.log_format = "%(levelname)s: %(message)s"
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, dest="command")
    for name in sorted(module.name for module in pkgutil.iter_modules(data_commands.__path__)):
        _add(commands, name)
    return parser


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
