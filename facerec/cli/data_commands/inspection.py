"""Look at a pack, and rebuild its index."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from facerec.cli.options import DATA, FORCE, INDEX, PACK_OR_BIN, WORKERS, force, option, workers
from facerec.errors import UserError, counted


@DATA.command(
    "info",
    option("path", "folder with train.rec, a .rec, a verification .bin, or a list of images", type=Path),
    option("--faces", "write a sheet of the first identities' faces", type=Path, metavar="OUT.PNG"),
    FORCE,
)
def show(options: Namespace) -> None:
    """Identities, images, sizes and formats of a pack, a .bin or a list.

    Images per identity are counted, sizes and formats are those of a sample; `property` and the index are
    compared with the labels.

    example:
      facerec-data info data/faces_emore
      facerec-data info data/faces_emore --faces first_faces.png
      facerec-data info data/faces_emore/lfw.bin --faces pairs.png
      facerec-data info list.txt --faces faces.png
    """
    from facerec.files import refuse_overwriting
    from facerec.loading.opening import open_images
    from facerec.making.summary import contact_sheet, summarise

    if options.faces:
        if options.faces.suffix.lower() != ".png":
            raise UserError(f"--faces {options.faces}: the name of the sheet must end in .png")
        refuse_overwriting(options.faces, options.force)
    for line in summarise(options.path):
        print(line)
    if options.faces:
        print(f"{'faces':<12}{contact_sheet(open_images(options.path, damaged='skip'), options.faces)}")


@DATA.command(
    "verify",
    PACK_OR_BIN,
    INDEX,
    option("--no-images", "do not decode the images", action="store_true"),
    WORKERS,
)
def verify_pack(options: Namespace) -> int:
    """Read everything in a pack, and name every damaged record.

    Every record is read (its framing, its header, its label), every image decoded, and whatever is damaged
    named with its key and offset, one per line.

    exit status: 0 all is well, 1 something is damaged, 2 there is no such pack

    example:
      facerec-data verify data/faces_emore
      facerec-data verify data/faces_emore/train.rec --no-images
    """
    from facerec.making.audit import audit
    from facerec.packs.pack import find_rec
    from facerec.progress import Bar

    threads, path = workers(options), find_rec(options.path)
    records = images = unlisted = damaged = 0
    for piece in audit(path, options.index, images=not options.no_images, workers=threads, title="verifying"):
        for finding in piece.findings:
            Bar.write(f"{finding.where}: {finding.reason}")
        records += piece.records
        images += piece.images
        unlisted += piece.unlisted
        damaged += piece.damaged
    if unlisted:
        print(f"not checked, for the index does not list them: {counted(unlisted, 'record')}")
    print(f"{path}: {counted(records, 'record')}, {counted(images, 'image')}, {damaged:,} damaged")
    return 1 if damaged else 0


@DATA.command(
    "index",
    option("path", "the .rec file, or the folder with train.rec", type=Path),
    option("--output", "where to write the .idx (default: beside the .rec)", type=Path),
    force("replace an .idx that is there (it is kept as .idx.old)"),
)
def rebuild_index(options: Namespace) -> None:
    """Rebuild the .idx of a .rec.

    Keys are numbered 0, 1, 2, … in file order, as the original tools number them; other keys cannot be known
    from a .rec.

    example:
      facerec-data index data/faces_emore/train.rec --force
    """
    from facerec.packs.index import default_path, rebuild
    from facerec.packs.pack import find_rec
    from facerec.packs.recordio import RecordReader

    path = find_rec(options.path)
    output = options.output or default_path(path)
    if output.exists() and not options.force:
        raise UserError(
            f"{output}: is already there; --force replaces it (and keeps it as {output.name}.old)"
        )
    with RecordReader(path) as reader:
        print(f"{output}: {counted(rebuild(path, reader.view, output), 'record')}")
