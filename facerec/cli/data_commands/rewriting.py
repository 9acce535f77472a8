"""Make packs, or files, of packs."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from facerec.cli.options import DATA, FORCE, INDEX, OUT, PACK, SEED, WORKERS, option, workers
from facerec.errors import UserError, counted, require


@DATA.command(
    "filter",
    PACK,
    OUT,
    option("--min-images", "leave out identities with fewer than N images", default=1, metavar="N"),
    option("--drop", "identities to leave out, one label or name per line", type=Path, metavar="FILE"),
    option(
        "--overlap",
        "the identities of a test set, which are left out: LFW's pairs.txt or people.txt, or one name "
        "per line; names of identities are the folders in the .lst",
        type=Path,
        metavar="FILE",
    ),
    FORCE,
)
def drop_identities(options: Namespace) -> None:
    """Copy a pack without some identities.

    Identities that have few images, are listed, or belong to a test set are left out of the new pack in the
    folder OUT; report.csv there names them. Labels are numbered anew.

    example:
      facerec-data filter data/mine data/mine10 --min-images 10
      facerec-data filter data/mine data/clean --drop wrong_people.txt --overlap pairs.txt
    """
    from facerec.making.pair_lists import read_entries, read_names
    from facerec.making.rewriting import filter_pack
    from facerec.packs.pack import open_pack

    require(options.min_images >= 1, "--min-images", options.min_images, "must be 1 or more")
    if options.min_images == 1 and not options.drop and not options.overlap:
        raise UserError("filter: give --min-images, --drop or --overlap")
    pack = open_pack(options.pack, damaged="skip")
    built = filter_pack(
        pack,
        options.out,
        min_images=options.min_images,
        drop=read_entries(options.drop) if options.drop else (),
        overlap=sorted(read_names(options.overlap)) if options.overlap else (),
        force=options.force,
    )
    print(built)
    left_out = pack.num_classes - built.identities
    print(f"{counted(left_out, 'identity')} left out; {options.out / 'report.csv'} names them")


@DATA.command(
    "merge",
    option("packs", "folders with train.rec, or .rec files; two or more", type=Path, nargs="+"),
    OUT,
    FORCE,
)
def merge_packs(options: Namespace) -> None:
    """Make one pack of several.

    Every identity of every pack stays an identity of its own in the new pack in the folder OUT; labels are
    numbered anew.

    example:
      facerec-data merge data/mine data/faces_webface_112x112 data/both
    """
    from facerec.making.rewriting import merge
    from facerec.packs.pack import open_pack

    if len(options.packs) < 2:
        raise UserError("merge: give two packs or more, then the folder of the new one")
    print(merge([open_pack(path) for path in options.packs], options.out, force=options.force))


@DATA.command(
    "split",
    PACK,
    option("parts", "a folder, and its part of the identities", nargs="+", metavar="OUT=FRACTION"),
    SEED,
    FORCE,
)
def split_pack(options: Namespace) -> None:
    """Split a pack into parts that share no identity.

    Each part is a folder, for a pack of its own, and a fraction of the identities of PACK, which are drawn.

    example:
      facerec-data split data/mine data/mine_train=0.9 data/mine_test=0.1
    """
    from facerec.making.rewriting import split
    from facerec.packs.pack import open_pack

    require(options.seed >= 0, "--seed", options.seed, "must be 0 or more")
    parts: dict[Path, float] = {}
    for part in options.parts:
        folder, _, fraction = part.rpartition("=")
        try:
            parts[Path(folder)] = float(fraction)
        except ValueError:
            raise UserError(f"{part}: must be a folder and a fraction, like data/mine_test=0.1") from None
    if len(parts) < len(options.parts) or Path() in parts:
        raise UserError("split: every part needs a folder of its own")
    for built in split(open_pack(options.pack), parts, seed=options.seed, force=options.force):
        print(built)


@DATA.command("repair", PACK, OUT, INDEX, WORKERS, FORCE)
def repair_pack(options: Namespace) -> None:
    """Copy what is sound of a damaged pack into a new one.

    Everything in PACK is read and decoded, and what is sound becomes a new pack in the folder OUT; report.csv
    there names each damaged record and what is wrong with it.

    example:
      facerec-data repair data/faces_emore data/faces_emore_repaired
    """
    from facerec.making.rewriting import repair
    from facerec.packs.pack import find_rec

    built, damaged, unlisted = repair(
        find_rec(options.pack),
        options.out,
        index=options.index,
        force=options.force,
        workers=workers(options),
    )
    print(built)
    print(f"{counted(damaged, 'damaged record')} left out; {options.out / 'report.csv'} names them")
    if unlisted:
        many = counted(unlisted, "record")
        print(f"{many} left out that the index does not list; without an .idx all are found")


@DATA.command("unpack", PACK, option("out", "folder to write", type=Path), FORCE)
def unpack_pack(options: Namespace) -> int:
    """Write the images of a pack as files, one folder per identity.

    Their bytes stay as they are; their names are those of the .lst beside PACK, else numbers.

    exit status: 0 all images were written, 1 some records are damaged, 2 there is no such pack

    example:
      facerec-data unpack data/faces_webface_112x112 casia
    """
    from facerec.making.rewriting import unpack
    from facerec.packs.pack import open_pack

    pack = open_pack(options.pack, damaged="skip")
    damaged = unpack(pack, options.out, force=options.force)
    for line in damaged:
        print(line, file=sys.stderr)
    images = counted(len(pack) - len(damaged), "image")
    print(f"{options.out}: {images} of {counted(pack.num_classes, 'identity')}")
    return 1 if damaged or pack.skipped else 0
