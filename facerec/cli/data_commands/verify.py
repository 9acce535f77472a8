"""`facerec-data verify`: read everything in a pack and name what is damaged."""

from __future__ import annotations

import argparse
from pathlib import Path

from facerec.cli.data_commands import Commands
from facerec.errors import counted

_EPILOG = """\
exit status: 0 all is well, 1 something is damaged, 2 there is no such pack

example:
  facerec-data verify data/faces_emore
  facerec-data verify data/faces_emore/train.rec --no-pictures
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="read everything in a pack, and name every damaged record",
        description="Read every record of a pack (its framing, its header, its label), decode every picture, "
        "and name whatever is damaged with its key and offset, one a line.",
        epilog=_EPILOG,
    )
    parser.add_argument("path", type=Path, help="folder with train.rec, a .rec, or a verification .bin")
    parser.add_argument("--index", type=Path, help="the .idx of the .rec (default: beside it)")
    parser.add_argument("--no-pictures", action="store_true", help="do not decode the pictures")
    parser.add_argument("--workers", type=int, help="decoding threads (default: one a processor)")
    parser.set_defaults(work=_verify)


def _verify(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from facerec.data.audit import audit
    from facerec.data.packs import find_rec
    from facerec.errors import require

    require(options.workers is None or options.workers > 0, "--workers", options.workers, "must be 1 or more")
    path = find_rec(options.path)
    work = audit(path, options.index, pictures=not options.no_pictures, workers=options.workers)
    records = pictures = unlisted = damaged = 0
    with tqdm(
        total=work.total, desc=f"verifying {path.name}", unit_scale=True, disable=None, delay=0.5
    ) as bar:
        for piece in work.progress:
            for finding in piece.findings:
                bar.write(f"{finding.place}: {finding.reason}")
            records += piece.records
            pictures += piece.pictures
            unlisted += piece.unlisted
            damaged += sum(finding.records for finding in piece.findings)
            bar.update(piece.done - bar.n)
    if unlisted:
        print(f"not checked, for the index does not list them: {counted(unlisted, 'record')}")
    print(f"{path}: {counted(records, 'record')}, {counted(pictures, 'picture')}, {damaged:,} damaged")
    return 1 if damaged else 0
