"""`facerec-data repair`: a new pack without the damaged records."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force, add_workers, workers
from facerec.errors import counted

_EPILOG = """\
example:
  facerec-data repair data/faces_emore data/faces_emore_repaired
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "repair",
        help="copy what is sound of a damaged pack into a new one",
        description="Read and decode everything in PACK, and write what is sound as a new pack into the "
        "folder OUT; report.csv there names each damaged record and what is wrong with it.",
        epilog=_EPILOG,
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec, or a .rec")
    parser.add_argument("out", type=Path, help="the folder of the new pack")
    parser.add_argument("--index", type=Path, help="the .idx of the .rec (default: beside it)")
    add_workers(parser)
    add_force(parser)
    parser.set_defaults(work=_repair)


def _repair(options: argparse.Namespace) -> None:
    from facerec.data.making.rewriting import repair
    from facerec.data.packs import find_rec

    path = find_rec(options.pack)
    built, damaged, unlisted = repair(
        path, options.out, index=options.index, force=options.force, workers=workers(options)
    )
    print(f"{options.out}: {built.describe()}")
    print(f"{counted(damaged, 'damaged record')} left out; {options.out / 'report.csv'} names them")
    if unlisted:
        many = counted(unlisted, "record")
        print(f"{many} left out that the index does not list; without an .idx all are found")
