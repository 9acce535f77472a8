"""Make a verification .bin: drawn pairs, or those of a list.

Without a list, pairs are drawn from a folder of identities or a pack: half of them genuine, ten folds that
share no identity. A list is LFW's pairs.txt, or a CSV with lines of path,path,label.

example:
  facerec-data pairs photographs_of_others data/mine/others.bin --align
  facerec-data pairs data/mine data/mine/test.bin --count 6000 --seed 1
  facerec-data pairs lfw-deepfunneled lfw.bin --list pairs.txt --align
  facerec-data pairs . my.bin --csv pairs.csv
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from facerec.cli.data_options import (
    add_force,
    add_image_options,
    add_seed,
    add_workers,
    face_maker,
    workers,
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, help="folder of identities, or a pack; with a list, where its paths start"
    )
    parser.add_argument("out", type=Path, help="the .bin to write")
    parser.add_argument("--list", type=Path, metavar="PAIRS.TXT", help="pairs in the format of LFW")
    parser.add_argument("--csv", type=Path, help="pairs as path,path,label; label 1 is genuine, 0 impostor")
    parser.add_argument("--count", type=int, help="pairs to draw (default: 600 per fold, or what there is)")
    parser.add_argument("--folds", type=int, default=10, help="folds to draw (default: 10)")
    add_seed(parser)
    add_image_options(parser)
    add_workers(parser)
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.errors import UserError
    from facerec.files import refuse_overwriting
    from facerec.loading.folders import FolderImages
    from facerec.making.pair_lists import read_csv, read_pairs_txt
    from facerec.making.verification_sets import write_drawn, write_listed
    from facerec.packs.pack import open_pack
    from facerec.packs.verification import load_verification

    if options.list and options.csv:
        raise UserError("--list and --csv: give one of them")
    if options.out.suffix != ".bin":
        raise UserError(f"{options.out}: the name of a verification set must end in .bin")
    refuse_overwriting(options.out, options.force)
    threads = workers(options)
    if options.list or options.csv:
        pairs, folds = read_pairs_txt(options.list) if options.list else (read_csv(options.csv), None)
        maker = face_maker(options)
        write_listed(options.source, pairs, options.out, maker, workers=threads, folds=folds)
    else:
        is_pack = options.source.is_file() or any(options.source.glob("*.rec"))
        write_drawn(
            open_pack(options.source, damaged="skip") if is_pack else FolderImages(options.source),
            options.out,
            None if is_pack else face_maker(options),
            count=options.count,
            folds=options.folds,
            seed=options.seed,
            workers=threads,
        )
    print(load_verification(options.out).describe())
