"""Make one pack of several.

Every identity of every pack stays an identity of its own in the new pack in the folder OUT; labels are
numbered anew.

example:
  facerec-data merge data/mine data/faces_webface_112x112 data/both
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "packs", type=Path, nargs="+", help="folders with train.rec, or .rec files; two or more"
    )
    parser.add_argument("out", type=Path, help="the folder of the new pack")
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.errors import UserError
    from facerec.making.rewriting import merge
    from facerec.packs.pack import open_pack

    if len(options.packs) < 2:
        raise UserError("merge: give two packs or more, then the folder of the new one")
    print(merge([open_pack(path) for path in options.packs], options.out, force=options.force))
