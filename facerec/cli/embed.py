"""`facerec-embed SOURCE OUT`: the embeddings of images as a file for other programs."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from facerec.cli.base import Program
from facerec.cli.options import FORCE, MODEL, opened_model, option
from facerec.errors import counted

program = Program("facerec-embed")
main, run = program.main, program.run


@program.command(
    "",
    option(
        "source",
        "a folder of images at any depth, a pack, a .bin, or a text file with a path a line",
        type=Path,
        metavar="SOURCE",
    ),
    option("out", "file to write: .npy or .parquet", type=Path, metavar="OUT"),
    *MODEL,
    "embeddings",
    option("--normalise", "to unit length", action="store_true"),
    "images and files",
    option("--align", "find the face and align it first (extra `align`)", action="store_true"),
    option(
        "--on-error",
        "at an image that does not decode: stop, or list it in OUT.skipped.csv",
        choices=("raise", "skip"),
        default="raise",
    ),
    option("--root", "where relative paths of a list start (default: in the list's folder)", type=Path),
    FORCE,
)
def embed(options: argparse.Namespace) -> None:
    """Embed the images of SOURCE and write the embeddings to OUT.

    OUT.npy is a float32 array with one row per image; OUT.names.csv beside it has one line name,label per
    row, with an apostrophe before what a spreadsheet would take for a formula (=a.jpg becomes '=a.jpg).
    OUT.parquet has the columns name, label and embedding (extra `parquet`). Of a .bin, rows 2i and 2i+1 are
    pair i, and the label is 1 where they show one identity, else 0.

    examples:
      facerec-embed photographs faces.npy --ckpt runs/x/checkpoints/best.pt --align
      facerec-embed data/faces_webface_112x112 casia.parquet --ckpt w600k_r50.onnx --normalise --on-error skip
      facerec-embed lfw.bin lfw.npy --ckpt weights.pth --backbone adaface_ir_50 --channels bgr
    """
    from facerec import process
    from facerec.evaluation.embedding_files import check_out, embed_to_file
    from facerec.loading.opening import open_images

    allocator = process.keep_memory()
    check_out(options.out, force=options.force)
    images = open_images(options.source, list_root=options.root, damaged=options.on_error)
    model = opened_model(options)
    log = logging.getLogger(__name__)
    if allocator:
        log.info("%-10s %s", "allocator", allocator)
    log.info("%s", images.describe())
    log.info("input %s%s", model.input, ", flipped too" if options.flip else "")
    written = embed_to_file(
        model,
        images,
        options.out,
        flip=options.flip,
        normalise=options.normalise,
        batch_size=options.batch_size,
        precision=options.precision,
        on_error=options.on_error,
        align=options.align,
        force=options.force,
    )
    if written.resized:
        log.info("resized and cropped: %s of another size", counted(written.resized, "image"))
    if written.skipped:
        log.warning("%s left out; %s says why", counted(written.skipped, "image"), written.files[-1])
    files = ", ".join(map(str, written.files))
    print(f"{counted(written.rows, 'embedding')} of {written.embedding_size} numbers: {files}")
