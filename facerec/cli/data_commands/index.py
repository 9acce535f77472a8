"""`facerec-data index`: rebuild the `.idx` of a `.rec`."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.errors import UserError, counted

_EPILOG = """\
example:
  facerec-data index data/faces_emore/train.rec --force
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "index",
        help="rebuild the .idx of a .rec",
        description="Walk a .rec and write its .idx. Keys are numbered 0, 1, 2, … in file order, as the "
        "original tools number them; other keys cannot be known from a .rec.",
        epilog=_EPILOG,
    )
    parser.add_argument("path", type=Path, help="the .rec file, or the folder with train.rec")
    parser.add_argument("--output", type=Path, help="where to write the .idx (default: beside the .rec)")
    parser.add_argument(
        "--force", action="store_true", help="replace an .idx that is there (it is kept as .idx.old)"
    )
    parser.set_defaults(work=_index)


def _index(options: argparse.Namespace) -> None:
    from facerec.data.index import default_path, rebuild
    from facerec.data.packs import find_rec

    path = find_rec(options.path)
    output = options.output or default_path(path)
    if output.exists() and not options.force:
        raise UserError(
            f"{output}: is already there; --force replaces it (and keeps it as {output.name}.old)"
        )
    count = rebuild(path, output)
    print(f"{output}: {counted(count, 'record')}")
