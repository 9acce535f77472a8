"""What a sub-command of `facerec-data` is made of: its function, and options that several of them have."""

from __future__ import annotations

import inspect
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from facerec.errors import require

if TYPE_CHECKING:
    from facerec.images.face_maker import FaceMaker

Option: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]
Work: TypeAlias = Callable[[Namespace], int | None]

COMMANDS: dict[str, tuple[Work, tuple[Option, ...], str]] = {}


def command(name: str, *options: Option, help: str = "") -> Callable[[Work], Work]:
    """Return a decorator that registers a function as a sub-command.

    `help`, else the function's docstring, is the help: a title, a paragraph, and whatever stands below it in
    ``--help``, an example at least. It returns the exit status, None for 0. What the work needs is imported
    in the function, so that ``--help`` stays quick.
    """

    def keep(work: Work) -> Work:
        COMMANDS[name] = work, options, help or inspect.getdoc(work) or ""
        return work

    return keep


def option(*names: str, **settings: Any) -> Option:
    """Return the arguments of `ArgumentParser.add_argument`."""
    return names, settings


def force(help: str = "replace what is there already") -> Option:
    return option("--force", action="store_true", help=help)


PACK_OR_BIN = option("path", type=Path, help="folder with train.rec, a .rec, or a verification .bin")
PACK = option("pack", type=Path, help="folder with train.rec, or a .rec")
OUT = option("out", type=Path, help="the folder of the new pack")
INDEX = option("--index", type=Path, help="the .idx of the .rec (default: beside it)")
SEED = option("--seed", type=int, default=0, help="of the drawing (default: 0)")
WORKERS = option("--workers", type=int, help="threads (default: one per processor)")
FORCE = force()
IMAGES = (
    option("--size", type=int, default=112, help="side of the faces in pixels (default: 112)"),
    option("--quality", type=int, default=95, help="of the JPEG, 1 to 100 (default: 95)"),
    option("--keep", action="store_true", help="store images of the right size as they are, byte for byte"),
    option(
        "--align",
        action="store_true",
        help="find the face, and put its eyes, nose and mouth where models expect them (extra `align`); "
        "without it images are resized by the short side and cropped at the centre",
    ),
    option(
        "--no-face",
        choices=("drop", "crop"),
        default="drop",
        help="with --align, what to do with an image where no face is found (default: drop)",
    ),
    option(
        "--several",
        choices=("largest", "drop"),
        help="with --align, what to do with an image of several faces: take the largest and most central one "
        "(default), or drop it",
    ),
    option(
        "--min-face",
        type=int,
        metavar="PIXELS",
        help="with --align, pass over faces of a shorter side than this",
    ),
)


def workers(options: Namespace) -> int:
    """Return the number of threads; raise ConfigError below 1."""
    from facerec.threads import cores

    require(options.workers is None or options.workers > 0, "--workers", options.workers, "must be 1 or more")
    return options.workers or cores()


def face_maker(options: Namespace) -> FaceMaker:
    """Return what `IMAGES` ask for; raise ConfigError, and MissingDataError without extra `align`."""
    from dataclasses import replace

    from facerec.images.detection import Mtcnn
    from facerec.images.face_maker import FaceMaker

    for name, given in (("--several", options.several), ("--min-face", options.min_face)):
        require(options.align or given is None, name, given, "needs --align, which finds the faces")
    maker = FaceMaker(
        options.size,
        options.quality,
        options.keep,
        no_face=options.no_face,
        several=options.several or "largest",
        min_face=options.min_face or 0,
    )
    return replace(maker, detector=Mtcnn()) if options.align else maker
