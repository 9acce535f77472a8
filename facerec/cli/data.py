"""`facerec-data SUBCOMMAND`: look after data sets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from facerec.cli import data_commands
from facerec.cli.base import Parser
from facerec.cli.data_options import COMMANDS, IMAGES
from facerec.cli.model_options import MODEL, OPTIONAL_MODEL


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
    for module in pkgutil.iter_modules(data_commands.__path__):
        importlib.import_module(f"{data_commands.__name__}.{module.name}")
    for name, (work, options, help) in sorted(COMMANDS.items()):
        title, text, *epilog = help.strip().split("\n\n")
        command = commands.add_parser(
            name,
            help=title[0].lower() + title[1:].rstrip("."),
            description=" ".join(f"{title} {text}".split()),
            epilog="\n\n".join(epilog),
        )
        images = command.add_argument_group("images")  # has no heading in the help where it stays empty
        model = command.add_argument_group("model")
        for one in options:
            group = images if one in IMAGES else model if one in (*MODEL, *OPTIONAL_MODEL) else command
            group.add_argument(*one[0], **one[1])
        command.set_defaults(run=work)
    return parser
