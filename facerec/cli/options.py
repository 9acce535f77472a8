"""Options that several commands have, and what they describe: threads, faces, a model."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerec import plugins
from facerec.cli.base import Option, Program, option
from facerec.errors import ConfigError, require
from facerec.settings import UP_TO_1024

if TYPE_CHECKING:
    from facerec.images.face_maker import FaceMaker
    from facerec.models.model import Model

DATA = Program("facerec-data", "Look after data sets.", log_format="%(levelname)s: %(message)s")


def force(help: str = "replace what is there already") -> Option:
    return option("--force", help, action="store_true")


PACK_OR_BIN = option("path", "folder with train.rec, a .rec, or a verification .bin", type=Path)
PACK = option("pack", "folder with train.rec, or a .rec", type=Path)
OUT = option("out", "the folder of the new pack", type=Path)
INDEX = option("--index", "the .idx of the .rec (default: beside it)", type=Path)
SEED = option("--seed", "of the drawing", default=0)
WORKERS = option("--workers", "threads (default: one per processor)", type=int)
FORCE = force()
IMAGES: tuple[Option | str, ...] = (
    "images",
    option("--size", "side of the faces in pixels", default=112),
    option("--quality", "of the JPEG, 1 to 100", default=95),
    option("--keep", "store images of the right size as they are, byte for byte", action="store_true"),
    option(
        "--align",
        "find the face, and put its eyes, nose and mouth where models expect them (extra `align`); "
        "without it images are resized by the short side and cropped at the centre",
        action="store_true",
    ),
    option(
        "--no-face",
        "with --align, what to do with an image where no face is found",
        choices=("drop", "crop"),
        default="drop",
    ),
    option(
        "--several",
        "with --align, what to do with an image of several faces: take the largest and most central one "
        "(default), or drop it",
        choices=("largest", "drop"),
    ),
    option(
        "--min-face", "with --align, pass over faces of a shorter side than this", type=int, metavar="PIXELS"
    ),
)

_CKPT: dict[str, Any] = {
    "type": Path,
    "metavar": "PATH",
    "help": "a checkpoint, a state dict (.pth, .safetensors), an ONNX network, or TorchScript",
}
_OF_MODEL = (
    option("--backbone", "of a state dict, where it is not recognised: iresnet50, …", metavar="NAME"),
    option("--mean", "subtracted from pixels 0 … 255; one number, or three with commas"),
    option("--std", "what they are divided by then; likewise"),
    option("--channels", "the order the model wants", choices=("rgb", "bgr")),
    option("--size", "of its images, where its file does not say: 112, or height,width"),
    option(
        "--allow-code",
        "run a TorchScript program; it can read and write files as you can",
        action="store_true",
    ),
    option("--device", "auto, cpu, cuda, cuda:N or mps", default="auto"),
    option("--precision", "", choices=("auto", "fp32", "bf16", "fp16"), default="fp32"),
    option("--batch-size", "images at once", default=128),
    option(
        "--flip",
        "add the embedding of the mirrored image (default: --flip)",
        action=BooleanOptionalAction,
        default=True,
    ),
)
MODEL = ("model", option("--ckpt", required=True, **_CKPT), *_OF_MODEL)
OPTIONAL_MODEL = ("model", option("--ckpt", **_CKPT), *_OF_MODEL)


def workers(options: Namespace) -> int:
    """Return the number of threads; raise ConfigError for none, or more than a machine has a use for."""
    from facerec.threads import cores

    UP_TO_1024.check("--workers", options.workers)
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


def opened_model(options: Namespace) -> Model:
    """Open the model that the options `MODEL` describe; raises what `load_model` raises."""
    from facerec.models.opening import load_model

    require(options.batch_size >= 1, "--batch-size", options.batch_size, "must be 1 or more")
    input = {
        "mean": _numbers("--mean", options.mean),
        "std": _numbers("--std", options.std),
        "channels": options.channels,
        "size": _numbers("--size", options.size),
    }
    backbone, device, code = {"name": options.backbone}, options.device, options.allow_code
    try:
        return load_model(options.ckpt, device=device, input=input, backbone=backbone, allow_code=code)
    except ConfigError as error:  # in the words of facerec-eval
        hint = error.hint.removesuffix(f"; {plugins.hint()}")
        raise ConfigError(f"--{error.key.removeprefix('input.')}", error.value, hint) from error


def _numbers(option: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(option, text, "must be a number, or numbers with commas between them") from None
    return numbers[0] if len(numbers) == 1 else numbers
