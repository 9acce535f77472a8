"""Split a pack into parts that share no identity.

Each part is a folder, for a pack of its own, and a fraction of the identities of PACK, which are drawn.

example:
  facerec-data split data/mine data/mine_train=0.9 data/mine_test=0.1
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force, add_pack, add_seed


def add_options(parser: ArgumentParser) -> None:
    add_pack(parser, out=None)
    parser.add_argument(
        "parts", nargs="+", metavar="OUT=FRACTION", help="a folder, and its part of the identities"
    )
    add_seed(parser)
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.errors import UserError, require
    from facerec.making.rewriting import split
    from facerec.packs.pack import open_pack

    require(options.seed >= 0, "--seed", options.seed, "must be 0 or more")
    parts: dict[Path, float] = {}
    for part in options.parts:
        folder, _, fraction = part.rpartition("=")
        try:
            parts[Path(folder)] = float(fraction)
        except ValueError:
            raise UserError(f"{part}: must be a folder and a fraction, like data/mine_test=0.1") from None
    if len(parts) < len(options.parts) or Path() in parts:
        raise UserError("split: every part needs a folder of its own")
    for built in split(open_pack(options.pack), parts, seed=options.seed, force=options.force):
        print(built)
