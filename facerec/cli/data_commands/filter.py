"""`facerec-data filter`: a new pack without some identities."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force
from facerec.errors import counted

_EPILOG = """\
example:
  facerec-data filter data/mine data/mine10 --min-images 10
  facerec-data filter data/mine data/clean --drop wrong_people.txt --overlap pairs.txt
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "filter",
        help="copy a pack without some identities",
        description="Copy PACK into the folder OUT without identities that have few pictures, are listed, or "
        "are people of a test set; report.csv there names them. Labels are numbered anew.",
        epilog=_EPILOG,
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec, or a .rec")
    parser.add_argument("out", type=Path, help="the folder of the new pack")
    parser.add_argument(
        "--min-images",
        type=int,
        default=1,
        metavar="N",
        help="leave out identities with fewer than N pictures",
    )
    parser.add_argument(
        "--drop", type=Path, metavar="FILE", help="identities to leave out, a label or name a line"
    )
    parser.add_argument(
        "--overlap",
        type=Path,
        metavar="FILE",
        help="the people of a test set, who are left out: LFW's pairs.txt or people.txt, or a name a line; "
        "names of identities are the folders in the .lst",
    )
    add_force(parser)
    parser.set_defaults(work=_filter)


def _filter(options: argparse.Namespace) -> None:
    from facerec.data.making.pair_lists import read_entries, read_names
    from facerec.data.making.rewriting import filter_pack
    from facerec.data.packs import open_pack
    from facerec.errors import UserError, require

    require(options.min_images >= 1, "--min-images", options.min_images, "must be 1 or more")
    if options.min_images == 1 and not options.drop and not options.overlap:
        raise UserError("filter: give --min-images, --drop or --overlap")
    pack = open_pack(options.pack, damaged="skip")
    built = filter_pack(
        pack,
        options.out,
        min_images=options.min_images,
        drop=read_entries(options.drop) if options.drop else (),
        overlap=sorted(read_names(options.overlap)) if options.overlap else (),
        force=options.force,
    )
    left = pack.num_classes - built.identities
    print(f"{options.out}: {built.describe()}")
    print(f"{counted(left, 'identity')} left out; {options.out / 'report.csv'} names them")
