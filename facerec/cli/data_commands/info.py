"""`facerec-data info`: what a pack holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force
from facerec.errors import counted

_EPILOG = """\
example:
  facerec-data info data/faces_emore
  facerec-data info data/faces_emore --faces first_faces.png
  facerec-data info data/faces_emore/lfw.bin
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "info",
        help="identities, pictures, sizes and formats of a pack",
        description="Say what a pack holds: identities, pictures an identity, sizes and formats of a sample, "
        "and whether `property` and the index agree with it.",
        epilog=_EPILOG,
    )
    parser.add_argument("path", type=Path, help="folder with train.rec, a .rec, or a verification .bin")
    parser.add_argument("--faces", type=Path, metavar="OUT.PNG", help="write a sheet of the first faces")
    add_force(parser)
    parser.set_defaults(work=_info)


def _info(options: argparse.Namespace) -> None:
    from facerec.data.making.builder import refuse_overwriting
    from facerec.data.making.contact_sheet import contact_sheet
    from facerec.data.packs import open_pack
    from facerec.data.summary import summarise
    from facerec.errors import UserError

    if options.faces:
        if options.path.suffix == ".bin" or options.faces.suffix.lower() != ".png":
            raise UserError(
                f"--faces {options.faces}: must be a .png, and {options.path} a pack of identities"
            )
        refuse_overwriting(options.faces, options.force)
    for line in summarise(options.path):
        print(line)
    if options.faces:
        many = contact_sheet(open_pack(options.path, damaged="skip"), options.faces)
        print(f"{'faces':<12}the first of {counted(many, 'identity')} on {options.faces}")
