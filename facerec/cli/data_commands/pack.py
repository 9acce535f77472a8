"""Make a pack from a folder of photographs.

FOLDER holds one folder of photographs per identity. The folder OUT gets train.rec, train.idx, train.lst,
property, and report.csv, which says what was left out and why. A run that was stopped goes on where it was
when it is started again.

example:
  facerec-data pack photographs data/mine --align
  facerec-data pack aligned_112x112 data/mine --keep
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force, add_image_options, add_workers, face_maker, workers


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a folder with one folder of images per identity")
    parser.add_argument("out", type=Path, help="the folder of the pack")
    add_image_options(parser)
    add_workers(parser)
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.making.from_folder import pack_folder

    maker = face_maker(options)
    built = pack_folder(options.folder, options.out, maker, force=options.force, workers=workers(options))
    print(built)
    built.print_dropped()
