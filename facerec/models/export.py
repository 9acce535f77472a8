"""Write a trained backbone for other programs: safetensors (weights) or ONNX (weights and network)."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from facerec.errors import FacerecError, UserError, require
from facerec.files import replacing
from facerec.models.model import Model
from facerec.models.networks import ForeignNetwork
from facerec.vectors import unit_rows

Format = Literal["onnx", "safetensors"]


def export(model: Model, path: Path, format: Format, *, opset: int | None = None) -> Path:
    """Write the backbone of `model` to `path`, its preprocessing in the file's metadata.

    ``onnx``: input ``image`` (N, 3, size, size) float, prepared as in the metadata; output ``embedding``
    (N, D), raw. The batch size is free. The file is run once by onnxruntime and compared before it is kept.
    ``safetensors``: the state dict under the names of the published layout.

    `opset` is the version of ONNX's operators that the file is to use; None: the exporter's own.

    Raises:
        ConfigError: the network cannot be written with this `opset`.
        UserError: the packages of the extra ``export`` are missing, or the network is not one of torch's.
        FacerecError: the exported network does not give the same embeddings.
        StorageError: the file could not be written.
    """
    if isinstance(model.backbone, ForeignNetwork):
        raise UserError(f"{model.path}: brings its own network, which cannot be exported; only weights can")
    metadata = {"facerec.input": json.dumps(model.input.to_dict()), "facerec.step": str(model.step)}
    if "backbone" in model.config:
        metadata["facerec.backbone"] = json.dumps(model.config["backbone"])
    if not model.knows_input:
        metadata["facerec.guessed"] = "input"  # so that an evaluation still checks it
    model.backbone.eval()
    require(
        opset is None or format == "onnx", "opset", opset, f"format={format} has no operators; leave it out"
    )
    content = _onnx(model, metadata, opset) if format == "onnx" else _safetensors(model.backbone, metadata)
    with replacing(path) as file:
        file.write(content)
    return path


def _safetensors(backbone: nn.Module, metadata: dict[str, str]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise _missing("safetensors", error) from error
    state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    content: bytes = save(state, metadata={"format": "pt", **metadata})
    return content


def _onnx(model: Model, metadata: dict[str, str], opset: int | None) -> bytes:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - needed by torch's exporter, whose own error is less clear
    except ImportError as error:
        raise _missing("onnx", error) from error
    example_BCHW = torch.zeros(2, 3, *model.input.shape)
    backbone = model.backbone.cpu()
    newest = onnx.defs.onnx_opset_version()
    require(
        opset is None or 1 <= opset <= newest, "opset", opset, f"must be a number from 1 to {newest}, or null"
    )
    with _quiet("torch.onnx", "onnxscript"):
        program = torch.onnx.export(
            backbone,
            (example_BCHW,),
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            dynamo=True,
            verbose=False,
            opset_version=opset,
        )
    assert program is not None
    proto = program.model_proto
    # The exporter leaves an opset that it cannot convert to, with a warning at most.
    used = next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    hint = f"this network cannot be written with it; opset={used} can, and so may newer ones"
    require(opset in (None, used), "opset", opset, hint)
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        _compare(backbone, session, torch.rand(batch, 3, *model.input.shape) * 2 - 1)
    return content


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep these loggers from warnings and tracebacks of what is checked here."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(backbone: nn.Module, session: object, image_BCHW: Tensor) -> None:
    """Raise `FacerecError` unless both give the same directions, to a cosine of 1 − 1e-5."""
    with torch.inference_mode():
        expected_BD = backbone(image_BCHW).numpy()
    (got_BD,) = session.run(None, {"image": image_BCHW.numpy()})  # type: ignore[attr-defined]
    cosine_B = (unit_rows(expected_BD) * unit_rows(got_BD)).sum(1)
    if not cosine_B.min() > 1 - 1e-5:
        raise FacerecError(
            f"the exported network gives other embeddings (cosine {cosine_B.min():.6f} with the original); "
            "nothing was written"
        )


def _missing(format: str, error: ImportError) -> UserError:
    return UserError(f"format={format}: needs the package {error.name}; pip install 'facerec[export]'")
