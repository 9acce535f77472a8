"""`facerec-data info`: what a pack holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands

_EPILOG = """\
example:
  facerec-data info data/faces_emore
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
    parser.set_defaults(work=_info)


def _info(options: argparse.Namespace) -> None:
    from facerec.data.summary import summarise

    for line in summarise(options.path):
        print(line)
