"""`facerec-data merge`: one pack of several."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force

_EPILOG = """\
example:
  facerec-data merge data/mine data/faces_webface_112x112 data/both
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "merge",
        help="make one pack of several",
        description="Make one pack of several in the folder OUT. Every identity of every pack stays one of "
        "its own; labels are numbered anew.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "packs", type=Path, nargs="+", help="folders with train.rec, or .rec files; two or more"
    )
    parser.add_argument("out", type=Path, help="the folder of the new pack")
    add_force(parser)
    parser.set_defaults(work=_merge)


def _merge(options: argparse.Namespace) -> None:
    from facerec.data.making.rewriting import merge
    from facerec.data.packs import open_pack
    from facerec.errors import UserError

    if len(options.packs) < 2:
        raise UserError("merge: give two packs or more, then the folder of the new one")
    built = merge([open_pack(path) for path in options.packs], options.out, force=options.force)
    print(f"{options.out}: {built.describe()}")
