"""The options of commands that open a model, and the model they describe."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerec.cli.data_options import option
from facerec.errors import ConfigError, require

if TYPE_CHECKING:
    from facerec.models.model import Model

MODEL = (
    option(
        "--ckpt",
        type=Path,
        required=True,
        metavar="PATH",
        help="a checkpoint, a state dict (.pth, .safetensors), an ONNX network, or TorchScript",
    ),
    option("--backbone", metavar="NAME", help="of a state dict, where it is not recognised: iresnet50, …"),
    option("--mean", help="subtracted from pixels 0 … 255; one number, or three with commas"),
    option("--std", help="what they are divided by then; likewise"),
    option("--channels", choices=("rgb", "bgr"), help="the order the model wants"),
    option("--size", help="of its images, where its file does not say: 112, or height,width"),
    option(
        "--allow-code",
        action="store_true",
        help="run a TorchScript program; it can read and write files as you can",
    ),
    option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)"),
    option("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32", help="(default: fp32)"),
    option("--batch-size", type=int, default=128, help="images at once (default: 128)"),
    option(
        "--flip",
        action=BooleanOptionalAction,
        default=True,
        help="add the embedding of the mirrored image (default: --flip)",
    ),
)
OPTIONAL_MODEL = (option(*MODEL[0][0], **{**MODEL[0][1], "required": False}), *MODEL[1:])


def opened_model(options: Namespace) -> Model:
    """Open the model that the options `MODEL` describe; raises what `load_model` raises."""
    from facerec.models.opening import load_model

    require(options.batch_size >= 1, "--batch-size", options.batch_size, "must be 1 or more")
    return load_model(
        options.ckpt,
        device=options.device,
        input={
            "mean": _numbers("--mean", options.mean),
            "std": _numbers("--std", options.std),
            "channels": options.channels,
            "size": _numbers("--size", options.size),
        },
        backbone={"name": options.backbone},
        allow_code=options.allow_code,
    )


def _numbers(option: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(option, text, "must be a number, or numbers with commas between them") from None
    return numbers[0] if len(numbers) == 1 else numbers
