"""`facerec-data lfw`: the pack and the pairs of Labeled Faces in the Wild."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.cli.data_options import add_force, add_picture_options, add_workers, face_maker, workers

_EPILOG = """\
example:
  facerec-data lfw lfw-deepfunneled data/lfw --lists lists --align --no-face crop
  facerec-data lfw lfw_aligned data/lfw --sets all --keep
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "lfw",
        help="make a pack and lfw.bin from a folder of LFW and its lists",
        description="Make of LFW (pictures NAME/NAME_0001.jpg) the pack of the people of some sets, lfw.bin "
        "with all pairs, and lfw_setK.bin with the pairs of each other set, whose people the pack lacks.",
        epilog=_EPILOG,
    )
    parser.add_argument("root", type=Path, help="the folder of the people")
    parser.add_argument("out", type=Path, help="the folder of the pack")
    parser.add_argument(
        "--lists",
        type=Path,
        help="the folder of pairs.txt and people.txt (default: the folder of the people)",
    )
    parser.add_argument(
        "--sets", default="1-9", help="sets to train on, like 1-9 or 1,2,5, or all (default: 1-9)"
    )
    add_picture_options(parser)
    add_workers(parser)
    add_force(parser)
    parser.set_defaults(work=_lfw)


def _lfw(options: argparse.Namespace) -> None:
    from facerec.data.making.lfw import make_lfw

    built = make_lfw(
        options.root,
        options.lists or options.root,
        options.out,
        face_maker(options),
        sets=_sets(options.sets),
        force=options.force,
        workers=workers(options),
    )
    print(f"{options.out}: {built.describe()}, and lfw.bin")
    if built.dropped:
        print(f"{built.dropped:,} left out; {options.out / 'report.csv'} says why")


def _sets(text: str) -> list[int] | None:
    """The numbers in ``1-3,5``; None for ``all``."""
    from facerec.errors import ConfigError

    if text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ConfigError("--sets", text, "must be like 1-9 or 1,2,5, or all")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
