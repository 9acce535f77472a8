"""`facerec-data split`: parts of a pack that share no identity."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force

_EPILOG = """\
example:
  facerec-data split data/mine data/mine_train=0.9 data/mine_test=0.1
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "split",
        help="split a pack into parts that share no identity",
        description="Write parts of PACK as packs of their own. Each is a folder and a fraction of the "
        "identities, which are drawn; no identity is in two parts.",
        epilog=_EPILOG,
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec, or a .rec")
    parser.add_argument(
        "parts", nargs="+", metavar="OUT=FRACTION", help="a folder, and its part of the identities"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    add_force(parser)
    parser.set_defaults(work=_split)


def _split(options: argparse.Namespace) -> None:
    from facerec.data.making.rewriting import split
    from facerec.data.packs import open_pack
    from facerec.errors import UserError, require

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
    for out, built in split(open_pack(options.pack), parts, seed=options.seed, force=options.force).items():
        print(f"{out}: {built.describe()}")
