"""Arguments and options that several sub-commands of `facerec-data` have."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from facerec.errors import require

if TYPE_CHECKING:
    from facerec.images.face_maker import FaceMaker


def add_pack(parser: ArgumentParser, *, out: str | None = "the folder of the new pack") -> None:
    """``PACK`` and, unless its help is None, ``OUT``."""
    parser.add_argument("pack", type=Path, help="folder with train.rec, or a .rec")
    if out is not None:
        parser.add_argument("out", type=Path, help=out)


def add_index(parser: ArgumentParser) -> None:
    parser.add_argument("--index", type=Path, help="the .idx of the .rec (default: beside it)")


def add_seed(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")


def add_force(parser: ArgumentParser, help: str = "replace what is there already") -> None:
    parser.add_argument("--force", action="store_true", help=help)


def add_workers(parser: ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, help="threads (default: one per processor)")


def workers(options: Namespace) -> int:
    """The number of threads; raises ConfigError below 1."""
    from facerec.threads import cores

    require(options.workers is None or options.workers > 0, "--workers", options.workers, "must be 1 or more")
    return options.workers or cores()


def add_image_options(parser: ArgumentParser) -> None:
    """``--size``, ``--quality``, ``--keep``, ``--align``, ``--no-face``: how photographs become faces."""
    group = parser.add_argument_group("images")
    group.add_argument("--size", type=int, default=112, help="side of the faces in pixels (default: 112)")
    group.add_argument("--quality", type=int, default=95, help="of the JPEG, 1 to 100 (default: 95)")
    group.add_argument(
        "--keep", action="store_true", help="store images of the right size as they are, byte for byte"
    )
    group.add_argument(
        "--align",
        action="store_true",
        help="find the face, and put its eyes, nose and mouth where models expect them (extra `align`); "
        "without it images are resized by the short side and cropped at the centre",
    )
    group.add_argument(
        "--no-face",
        choices=("drop", "crop"),
        default="drop",
        help="with --align, what to do with an image where no face is found (default: drop)",
    )


def face_maker(options: Namespace) -> FaceMaker:
    """The face maker of the image options; raises ConfigError, and MissingDataError without extra `align`."""
    from dataclasses import replace

    from facerec.images.detection import Mtcnn
    from facerec.images.face_maker import FaceMaker

    maker = FaceMaker(options.size, options.quality, options.keep, no_face=options.no_face)
    return replace(maker, detector=Mtcnn()) if options.align else maker
