"""Search two packs for people who are in both."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from facerec.cli.options import DATA, MODEL, force, opened_model, option
from facerec.errors import counted, require

_LIST = "drop.txt"


@DATA.command(
    "overlap",
    option("first", "a pack, or a folder with one folder per identity; it stays as it is", type=Path),
    option("second", "another, whose identities are listed where the first has them, too", type=Path),
    option("out", f"folder to write: pairs.csv and {_LIST}", type=Path),
    option(
        "--at",
        "of two centres of one person (default: from the data, so that about 1 of 100 identities of "
        "SECOND is listed by mistake)",
        type=float,
        metavar="COSINE",
    ),
    *MODEL,
    force("replace files that are there already"),
)
def overlap(options: Namespace) -> None:
    """Find people who are in two packs.

    Compares the centres of all identities of both by the embeddings of a model. OUT/pairs.csv has each pair
    of identities that is likely one person with its cosine, the most alike first, to be looked through;
    OUT/drop.txt the identities of SECOND among them, which `facerec-data filter` leaves out.

    example:
      facerec-data overlap data/casia data/mine both --ckpt best.pt
      facerec-data filter data/mine data/mine_rest --drop both/drop.txt
      facerec-train 'data=[data/casia,data/mine_rest]'
    """
    import numpy as np

    from facerec.evaluation.identities import identities_in_both
    from facerec.files import csv_lines, refuse_overwriting, replacing_both
    from facerec.loading.opening import open_identities

    require(
        options.at is None or 0 < options.at <= 1, "--at", options.at, "must be a cosine above 0, at most 1"
    )
    table, names = options.out / "pairs.csv", options.out / _LIST
    for path in (table, names):
        refuse_overwriting(path, options.force)
    first, second = open_identities(options.first), open_identities(options.second)
    how = {"flip": options.flip, "batch_size": options.batch_size, "precision": options.precision}
    pairs, least = identities_in_both(opened_model(options), first, second, options.at, **how)
    counts = [np.bincount(faces.label_N, minlength=faces.num_classes) for faces in (first, second)]
    names_of = [[faces.label(i) for i in faces.first_images().tolist()] for faces in (first, second)]
    rows = [
        (
            f"{cosine:.4f}",
            *(str(faces.classes[c]) for faces, c in ((first, one), (second, two))),
            *(names[c] for names, c in zip(names_of, (one, two), strict=True)),
            *(int(count[c]) for count, c in zip(counts, (one, two), strict=True)),
        )
        for one, two, cosine in zip(*(part.tolist() for part in pairs), strict=True)
    ]
    both = sorted(set(pairs.second_K.tolist()))
    header = ("cosine", "first", "second", "first_name", "second_name", "first_images", "second_images")
    with replacing_both(table, names) as (file, listing):
        file.write(csv_lines([header, *rows]))
        listing.write("".join(f"{second.classes[c]}\n" for c in both).encode("utf-8", "surrogateescape"))
    chance = "" if options.at is not None else ", which different people reach for 1 in 100 of them"
    print(
        f"{len(both):,} of {counted(second.num_classes, 'identity')} of {options.second} are likely in "
        f"{options.first} (cosine {least:.3f} or more{chance}): {table}{f', {names}' if both else ''}"
    )
