"""Make a pack and lfw.bin from a folder of LFW and its lists.

The folder holds images NAME/NAME_0001.jpg. The pack has the people of some sets, lfw.bin all pairs, and
lfw_setK.bin the pairs of each other set, whose people the pack lacks.

example:
  facerec-data lfw lfw-deepfunneled data/lfw --lists lists --align --no-face crop
  facerec-data lfw lfw_aligned data/lfw --sets all --keep
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_force, add_image_options, add_workers, face_maker, workers
from facerec.errors import ConfigError


def add_options(parser: ArgumentParser) -> None:
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
    add_image_options(parser)
    add_workers(parser)
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.making.lfw import make_lfw

    built = make_lfw(
        options.root,
        options.lists or options.root,
        options.out,
        face_maker(options),
        sets=_sets(options.sets),
        force=options.force,
        workers=workers(options),
    )
    print(f"{built}, and lfw.bin")
    built.print_dropped()


def _sets(text: str) -> list[int] | None:
    """The numbers in ``1-3,5``; None for ``all``."""
    if text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ConfigError("--sets", text, "must be like 1-9 or 1,2,5, or all")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
