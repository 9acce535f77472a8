"""Copy a pack without some identities.

Identities that have few images, are listed, or belong to a test set are left out of the new pack in the
folder OUT; report.csv there names them. Labels are numbered anew.

example:
  facerec-data filter data/mine data/mine10 --min-images 10
  facerec-data filter data/mine data/clean --drop wrong_people.txt --overlap pairs.txt
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force, add_pack


def add_options(parser: ArgumentParser) -> None:
    add_pack(parser)
    parser.add_argument(
        "--min-images",
        type=int,
        default=1,
        metavar="N",
        help="leave out identities with fewer than N images",
    )
    parser.add_argument(
        "--drop", type=Path, metavar="FILE", help="identities to leave out, one label or name per line"
    )
    parser.add_argument(
        "--overlap",
        type=Path,
        metavar="FILE",
        help="the people of a test set, who are left out: LFW's pairs.txt or people.txt, or one name per "
        "line; names of identities are the folders in the .lst",
    )
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.errors import UserError, counted, require
    from facerec.making.pair_lists import read_entries, read_names
    from facerec.making.rewriting import filter_pack
    from facerec.packs.pack import open_pack

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
    print(built)
    left_out = pack.num_classes - built.identities
    print(f"{counted(left_out, 'identity')} left out; {options.out / 'report.csv'} names them")
