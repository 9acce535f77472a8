"""`facerec-data SUBCOMMAND`: look after data sets. One module of `data_commands` a sub-command."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from collections.abc import Sequence

from facerec.cli import data_commands
from facerec.cli.errors import Parser, reported, stopped_by_sigterm


def main() -> None:
    """Entry point of the console script. SIGTERM ends it as Ctrl-C does: files half made are removed."""
    sys.exit(stopped_by_sigterm(lambda: reported("facerec-data", lambda: run(sys.argv[1:]))))


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says; returns the exit status."""
    parser = Parser(prog="facerec-data", description="Look after data sets.")
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, dest="command")
    for module in sorted(pkgutil.iter_modules(data_commands.__path__), key=lambda module: module.name):
        importlib.import_module(f"{data_commands.__name__}.{module.name}").add(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    return int(options.work(options) or 0)
