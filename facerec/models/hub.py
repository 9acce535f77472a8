"""A model as a folder of the Hugging Face hub: written, found, read, uploaded; CVLface's folders are read.

Ours holds model.safetensors, config.json (what its metadata says: backbone, input, step, threshold),
preprocessor_config.json (the same preprocessing in the hub's usual words) and README.md, the model card.
CVLface's holds model.safetensors or pretrained_model/model.pt, and a config.json whose ``conf`` names the
colours; its code (wrapper.py, models/) is not run, so its network must be one of the known backbones.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from facerec.errors import CheckpointError, FacerecError, UserError
from facerec.files import write_bytes
from facerec.images.preprocessing import Preprocessing
from facerec.pickles.stand_ins import are_settings

WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"
CARD: Final = "README.md"
_CVLFACE: Final = "pretrained_model/model.pt"
_READ: Final = [WEIGHTS, CONFIG, _CVLFACE]
_REPOSITORY: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LARGEST: Final = 1 << 20  # bytes of a config.json


def as_metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings of a model as the metadata of its files holds them."""
    return {f"facerec.{key}": json.dumps(value) for key, value in settings.items()}


def recorded(metadata: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The settings that `as_metadata` put under a name; empty where there are none.

    Raises:
        CheckpointError: they are damaged; it begins with `where`.
    """
    text = metadata.get(f"facerec.{name}")
    try:
        value = {} if text is None else json.loads(text)
        if not (isinstance(value, dict) and are_settings(value)):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: its metadata facerec.{name} is damaged; export it again") from error
    return value


def write(folder: Path, weights: bytes, settings: Mapping[str, Any]) -> None:
    """Write weights and settings; the card is `write_card`'s."""
    input = Preprocessing(**settings["input"])
    prepared = {
        "do_resize": True,
        "size": dict(zip(("height", "width"), input.shape, strict=True)),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (np.broadcast_to(input.mean, 3) / 255).tolist(),
        "image_std": (np.broadcast_to(input.std, 3) / 255).tolist(),
        "channels": input.channels,
        "alignment": "five points on the ArcFace template",
    }
    _write_json(folder / CONFIG, {"library_name": "facerec", "model_type": "facerec", **settings})
    _write_json(folder / "preprocessor_config.json", prepared)
    write_bytes(folder / WEIGHTS, weights)


def write_card(folder: Path, text: str) -> None:
    """Write the model card."""
    write_bytes(folder / CARD, text.encode())


def add(folder: Path, settings: Mapping[str, Any]) -> None:
    """Add to the settings of a folder that `write` wrote."""
    _write_json(folder / CONFIG, _config(folder) | dict(settings))


def is_folder(path: Path) -> bool:
    """Return True for a folder with a config.json and weights."""
    return (path / CONFIG).is_file() and weights_in(path) != path


def weights_in(path: Path) -> Path:
    """The file of the weights in a folder of the hub; other paths as they are."""
    return next((path / name for name in (WEIGHTS, _CVLFACE) if (path / name).is_file()), path)


def metadata_of(folder: Path) -> dict[str, str]:
    """What config.json says, under the names of the metadata of our files.

    Raises:
        CheckpointError: it is damaged.
    """
    config = _config(folder)
    conf = config.get("conf")
    if isinstance(conf, Mapping) and "color_space" in conf:  # CVLface; all of it takes −1 … 1
        config = {"input": {"channels": str(conf["color_space"]).lower()}}
    if config.get("model_type") != "facerec":  # whose words may mean other things: {"backbone": "resnet50"}
        config = {key: value for key, value in config.items() if isinstance(value, dict)}
    known = ("backbone", "input", "threshold", "step", "guessed")
    return as_metadata({key: config[key] for key in known if key in config})


def located(path: str | Path) -> Path:
    """The path, or the local copy of the repository ``owner/name`` where there is no such path.

    Raises:
        CheckpointError: no such path, and no such repository, or no way to reach it.
    """
    local = Path(path)
    if local.exists() or local.suffix or not _REPOSITORY.fullmatch(str(path)):
        return local
    try:
        import huggingface_hub
    except ImportError:
        hint = "to read a repository of the Hugging Face hub, pip install 'facerec[hub]'"
        raise CheckpointError(f"ckpt={path}: no such file or folder; {hint}") from None
    try:
        return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=_READ))
    except Exception as error:  # of HTTP, of the hub, of its cache: no common base
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"ckpt={path}: no such file or folder, and the Hugging Face hub gives no such model: {reason}"
        ) from error


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to the repository ``owner/name``, made where it is missing; returns its address.

    Raises:
        UserError: huggingface_hub is missing.
        FacerecError: it did not succeed; the folder is complete.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"upload={repository}: needs huggingface_hub; pip install 'facerec[hub]'") from error
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Written by facerec-export")
    except Exception as error:  # as above
        reason = str(error).partition("\n")[0]
        raise FacerecError(f"upload={repository}: {reason}; {folder} is complete") from error
    return str(address)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _LARGEST:
            config = json.loads(path.read_bytes())
            if isinstance(config, dict):
                return config
    raise CheckpointError(f"ckpt={path}: is damaged, or no configuration of a model")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
