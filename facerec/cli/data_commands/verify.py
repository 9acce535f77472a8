"""Read everything in a pack, and name every damaged record.

Every record is read (its framing, its header, its label), every image decoded, and whatever is damaged named
with its key and offset, one per line.

exit status: 0 all is well, 1 something is damaged, 2 there is no such pack

example:
  facerec-data verify data/faces_emore
  facerec-data verify data/faces_emore/train.rec --no-images
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import add_index, add_workers, workers


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder with train.rec, a .rec, or a verification .bin")
    add_index(parser)
    parser.add_argument("--no-images", action="store_true", help="do not decode the images")
    add_workers(parser)


def run(options: Namespace) -> int:
    from tqdm import tqdm

    from facerec.errors import counted
    from facerec.making.audit import audit
    from facerec.packs.pack import find_rec

    threads = workers(options)
    path = find_rec(options.path)
    work = audit(path, options.index, images=not options.no_images, workers=threads)
    records = images = unlisted = damaged = 0
    for piece in work.shown(f"verifying {path.name}"):
        for finding in piece.findings:
            tqdm.write(f"{finding.where}: {finding.reason}")
        records += piece.records
        images += piece.images
        unlisted += piece.unlisted
        damaged += piece.damaged
    if unlisted:
        print(f"not checked, for the index does not list them: {counted(unlisted, 'record')}")
    print(f"{path}: {counted(records, 'record')}, {counted(images, 'image')}, {damaged:,} damaged")
    return 1 if damaged else 0
