"""Identities, images, sizes and formats of a pack.

Images per identity are counted, sizes and formats are those of a sample; `property` and the index are
compared with the labels.

example:
  facerec-data info data/faces_emore
  facerec-data info data/faces_emore --faces first_faces.png
  facerec-data info data/faces_emore/lfw.bin
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder with train.rec, a .rec, or a verification .bin")
    parser.add_argument("--faces", type=Path, metavar="OUT.PNG", help="write a sheet of the first faces")
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.errors import UserError, counted
    from facerec.files import refuse_overwriting
    from facerec.making.summary import contact_sheet, summarise
    from facerec.packs.pack import open_pack

    if options.faces:
        if options.path.suffix == ".bin" or options.faces.suffix.lower() != ".png":
            raise UserError(
                f"--faces {options.faces}: must be a .png, and {options.path} a pack of identities"
            )
        refuse_overwriting(options.faces, options.force)
    for line in summarise(options.path):
        print(line)
    if options.faces:
        count = contact_sheet(open_pack(options.path, damaged="skip"), options.faces)
        print(f"{'faces':<12}the first of {counted(count, 'identity')} on {options.faces}")
