"""Write the images of a pack as files, one folder per identity.

Their bytes stay as they are; their names are those of the .lst beside PACK, else numbers.

exit status: 0 all images were written, 1 some records are damaged, 2 there is no such pack

example:
  facerec-data unpack data/faces_webface_112x112 casia
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from facerec.cli.data_options import add_force, add_pack


def add_options(parser: ArgumentParser) -> None:
    add_pack(parser, out="folder to write")
    add_force(parser)


def run(options: Namespace) -> int:
    from facerec.errors import counted
    from facerec.making.unpacking import unpack
    from facerec.packs.pack import open_pack

    pack = open_pack(options.pack, damaged="skip")
    damaged = unpack(pack, options.out, force=options.force)
    for line in damaged:
        print(line, file=sys.stderr)
    images = counted(len(pack) - len(damaged), "image")
    print(f"{options.out}: {images} of {counted(pack.num_classes, 'identity')}")
    return 1 if damaged or pack.skipped else 0
