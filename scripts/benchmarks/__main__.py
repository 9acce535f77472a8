"""Run one benchmark: `scripts/benchmark NAME [--json FILE]`.

Every other module of this folder but `table` is a benchmark. It offers
``rows(options)``, which yields `table.Row`, and may offer ``add_options(parser)``.
"""

import argparse
import importlib
import sys
from pathlib import Path

from facerec import process


def main() -> int:
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("[a-z]*.py") if path.stem != "table")
    parser = argparse.ArgumentParser(
        prog="benchmark", description="Measure against the floor and the common implementation."
    )
    process.wait_briefly()  # as every command does before it loads torch
    process.keep_memory()
    table = importlib.import_module("table")
    choices = parser.add_subparsers(metavar="NAME", required=True, dest="name")
    for name in names:
        text = (folder / f"{name}.py").read_text().partition('"""')[2].partition('"""')[0]
        command = choices.add_parser(name, help=text.splitlines()[0], description=text)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
        if name in sys.argv[1:2]:  # only the benchmark that is asked for is imported
            add_options = getattr(importlib.import_module(name), "add_options", None)
            if add_options is not None:
                add_options(command)
    options = parser.parse_args()
    table.show(importlib.import_module(options.name).rows(options), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
