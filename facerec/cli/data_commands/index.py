"""Rebuild the .idx of a .rec.

Keys are numbered 0, 1, 2, … in file order, as the original tools number them; other keys cannot be known
from a .rec.

example:
  facerec-data index data/faces_emore/train.rec --force
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="the .rec file, or the folder with train.rec")
    parser.add_argument("--output", type=Path, help="where to write the .idx (default: beside the .rec)")
    add_force(parser, "replace an .idx that is there (it is kept as .idx.old)")


def run(options: Namespace) -> None:
    from facerec.errors import UserError, counted
    from facerec.packs.index import default_path, rebuild
    from facerec.packs.pack import find_rec

    path = find_rec(options.path)
    output = options.output or default_path(path)
    if output.exists() and not options.force:
        raise UserError(
            f"{output}: is already there; --force replaces it (and keeps it as {output.name}.old)"
        )
    print(f"{output}: {counted(rebuild(path, output), 'record')}")
