"""`facerec-data pack`: a folder of photographs becomes a pack."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force, add_picture_options, add_workers, face_maker, workers

_EPILOG = """\
example:
  facerec-data pack photographs data/mine --align
  facerec-data pack aligned_112x112 data/mine --keep
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "pack",
        help="make a pack from a folder of photographs",
        description="Pack FOLDER, which holds a folder of photographs for each person, into the folder OUT: "
        "train.rec, train.idx, train.lst, property, and report.csv, which says what was left out and why. A "
        "run that was stopped goes on where it was when it is started again.",
        epilog=_EPILOG,
    )
    parser.add_argument("folder", type=Path, help="a folder with a folder of pictures for each person")
    parser.add_argument("out", type=Path, help="the folder of the pack")
    add_picture_options(parser)
    add_workers(parser)
    add_force(parser)
    parser.set_defaults(work=_pack)


def _pack(options: argparse.Namespace) -> None:
    from facerec.data.making.from_folder import pack_folder

    maker = face_maker(options)
    built = pack_folder(options.folder, options.out, maker, force=options.force, workers=workers(options))
    print(f"{options.out}: {built.describe()}")
    if built.dropped:
        print(f"{built.dropped:,} left out; {options.out / 'report.csv'} says why")
