"""Write a trained backbone for other programs: ONNX, safetensors, or a folder of the Hugging Face hub.

What a file cannot say by its form stands in its metadata: preprocessing, step, backbone, threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facerec.errors import UserError, require
from facerec.files import replacing
from facerec.models import hub
from facerec.models.hub import as_metadata
from facerec.models.model import Model
from facerec.models.networks import ForeignNetwork
from facerec.models.recognition import network_settings
from facerec.models.threshold import Threshold
from facerec.models.weights import read_safetensors

Format = Literal["onnx", "safetensors", "hub"]
Precision = Literal["fp32", "fp16", "int8"]


def export(
    model: Model,
    path: Path,
    format: Format,
    *,
    precision: Precision = "fp32",
    opset: int | None = None,
    preprocessing: bool = False,
    normalise: bool = False,
    sample_NHWC: np.ndarray | None = None,
) -> Path:
    """Write the backbone of `model` to `path`.

    ``onnx``: input ``image`` (N, 3, height, width) float, prepared as in the metadata; output ``embedding``
    (N, D) float, raw. The batch size is free. The file is run by onnxruntime and compared before it is kept.
    ``safetensors``: the state dict under the names of the published layout. ``hub``: a folder of it, see
    `facerec.models.hub`.

    Args:
        precision: of the weights (and of ONNX's arithmetic); ``int8`` is for ONNX, by onnxruntime.
        opset: version of ONNX's operators that the file is to use; None: the exporter's own.
        preprocessing: ONNX takes uint8 RGB (N, height, width, 3) and prepares it itself.
        normalise: ONNX gives unit vectors.
        sample_NHWC: faces, uint8 RGB, that int8 chooses its ranges by; also compared. None: noise, compared.

    Raises:
        ConfigError: a setting that the format does not have, or an `opset` that the network does not.
        UserError: the packages of the extra ``export`` are missing, or the network is not one of torch's.
        FacerecError: the exported network does not give the same embeddings.
        StorageError: the file could not be written.
    """
    if isinstance(model.backbone, ForeignNetwork):
        raise UserError(f"{model.path}: brings its own network, which cannot be exported; only weights can")
    model.backbone.eval()
    only_onnx = {"opset": opset, "preprocessing": preprocessing, "normalise": normalise}
    for key, value in only_onnx.items():
        require(not value or format == "onnx", key, value, f"format={format} has none; leave it out")
    if format == "onnx":
        needed = sample_NHWC is not None or precision != "int8"
        require(needed, "precision", precision, "needs calibration=IMAGES, some hundred aligned faces")
        content = _onnx(model, only_onnx | {"precision": precision, "sample_NHWC": sample_NHWC})
    else:
        require(precision != "int8", "precision", precision, "needs format=onnx")
        content = _safetensors(model, precision)
    if format == "hub":
        hub.write(path, content, described(model))
    else:
        with replacing(path) as file:
            file.write(content)
    return path


def described(model: Model) -> dict[str, Any]:
    """What the files of a model say of it: input, step, backbone, threshold, as far as they are known."""
    settings: dict[str, Any] = {"input": model.input.to_dict()}
    if model.step is not None:
        settings["step"] = model.step
    if "name" in model.config.get("backbone", {}):
        settings["backbone"] = network_settings(model.config["backbone"])
    if model.weights != "raw":
        settings["weights"] = model.weights
    if not model.knows_input:
        settings["guessed"] = "input"  # so that an evaluation still checks it
    if model.threshold is not None:
        settings["threshold"] = asdict(model.threshold)
    return settings


def store_threshold(path: Path, threshold: Threshold) -> None:
    """Add the threshold to an export, which was judged after it was written."""
    settings = {"threshold": asdict(threshold)}
    if path.is_dir():
        hub.add(path, settings)
        return
    if path.suffix == ".onnx":
        import onnx

        proto = onnx.load(path)
        for key, value in as_metadata(settings).items():
            proto.metadata_props.add(key=key, value=value)
        content = proto.SerializeToString()
    else:
        state, metadata = read_safetensors(path)
        content = _saved(state, metadata | as_metadata(settings))
    with replacing(path) as file:
        file.write(content)


def _safetensors(model: Model, precision: str) -> bytes:
    state = {name: value.contiguous().cpu() for name, value in model.backbone.state_dict().items()}
    if precision == "fp16":
        state = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
    return _saved(state, {"format": "pt"} | as_metadata(described(model)))


def _saved(state: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise _missing("safetensors", error) from error
    content: bytes = save(dict(state), metadata=dict(metadata))
    return content


def _onnx(model: Model, options: dict[str, Any]) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - needed by torch's exporter, whose own error is less clear
    except ImportError as error:
        raise _missing("onnx", error) from error
    from facerec.models.onnx_export import onnx_content

    settings = described(model)
    if options["preprocessing"]:
        settings["input"] |= {"mean": 0.0, "std": 1.0, "channels": "rgb"}
    return onnx_content(model, as_metadata(settings), **options)


def _missing(format: str, error: ImportError) -> UserError:
    return UserError(f"format={format}: needs the package {error.name}; pip install 'facerec[export]'")
