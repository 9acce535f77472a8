"""Options that several sub-commands of `facerec-data` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facerec.images.face_maker import FaceMaker


def add_force(parser: argparse.ArgumentParser) -> None:
    """``--force``."""
    parser.add_argument("--force", action="store_true", help="replace what is there already")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """``--workers``."""
    parser.add_argument("--workers", type=int, help="threads (default: one a processor)")


def workers(options: argparse.Namespace) -> int:
    """How many threads; raises ConfigError below 1."""
    from facerec.errors import require
    from facerec.loading.settings import cores

    require(options.workers is None or options.workers > 0, "--workers", options.workers, "must be 1 or more")
    return options.workers or cores()


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How photographs become faces: ``--size``, ``--quality``, ``--keep``, ``--align``, ``--no-face``."""
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


def face_maker(options: argparse.Namespace) -> FaceMaker:
    """What the image options say; raises ConfigError, and MissingDataError without the extra `align`."""
    from facerec.images.detection import Mtcnn
    from facerec.images.face_maker import FaceMaker

    maker = FaceMaker(options.size, options.quality, options.keep, None, options.no_face)
    if not options.align:
        return maker
    return FaceMaker(options.size, options.quality, options.keep, Mtcnn(), options.no_face)
