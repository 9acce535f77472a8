"""`facerec-data unpack`: a pack becomes a folder of pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force
from facerec.errors import counted

_EPILOG = """\
exit status: 0 all pictures were written, 1 some records are damaged, 2 there is no such pack

example:
  facerec-data unpack data/faces_webface_112x112 casia
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "unpack",
        help="write the pictures of a pack as files, a folder an identity",
        description="Write the pictures of PACK into the folder OUT, a folder an identity: their bytes as "
        "they are, their names those of the .lst beside the pack, else numbers.",
        epilog=_EPILOG,
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec, or a .rec")
    parser.add_argument("out", type=Path, help="folder to write")
    add_force(parser)
    parser.set_defaults(work=_unpack)


def _unpack(options: argparse.Namespace) -> int:
    from facerec.data.making.unpacking import unpack
    from facerec.data.packs import open_pack

    pack = open_pack(options.pack, damaged="skip")
    done = unpack(pack, options.out, force=options.force)
    for line in done.damaged:
        print(line, file=sys.stderr)
    print(f"{options.out}: {counted(done.pictures, 'picture')} of {counted(pack.num_classes, 'identity')}")
    return 1 if done.damaged or pack.skipped else 0
