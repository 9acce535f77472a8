"""`facerec-data SUBCOMMAND`: look after data sets. One module of `data_commands` a sub-command."""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from facerec.cli import data_commands
from facerec.cli.errors import reported, stopped_by_sigterm
from facerec.errors import UserError


def main() -> None:
    """Entry point of the console script. SIGTERM ends it as Ctrl-C does: files half made are removed."""
    sys.exit(stopped_by_sigterm(lambda: reported("facerec-data", lambda: run(sys.argv[1:]))))


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says; returns the exit status."""
    parser = _Parser(prog="facerec-data", description="Look after data sets.")
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, dest="command")
    for module in sorted(pkgutil.iter_modules(data_commands.__path__), key=lambda module: module.name):
        importlib.import_module(f"{data_commands.__name__}.{module.name}").add(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    return int(options.work(options) or 0)


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, as everywhere else; examples in the epilog keep their lines."""

    def __init__(self, **settings: object) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        settings.setdefault("allow_abbrev", False)
        settings["description"] = textwrap.fill(str(settings.get("description", "")), 80)
        super().__init__(**settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        name = self.prog.partition(" ")[2]
        raise UserError(f"{name + ': ' if name else ''}{message}; see `{self.prog} --help`")
