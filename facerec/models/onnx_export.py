"""A backbone as an ONNX file: exported by torch, made smaller by onnxruntime's own tools.

Shape suffixes: N images, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from facerec.errors import FacerecError, require
from facerec.images.preprocessing import Preprocessing
from facerec.models.model import Model
from facerec.vectors import unit_rows

if TYPE_CHECKING:
    import onnx

# The cosine with the original's embeddings below which a file is not written.
LOWEST: Final = {"fp32": 1 - 1e-5, "fp16": 1 - 1e-3, "int8": 0.7}


class OnnxBackbone(nn.Module):
    """A backbone with what the file is to do besides: prepare the pixels, divide by the length.

    Args:
        backbone: from (N, 3, H, W) floats.
        input: takes uint8 RGB (N, H, W, 3) and prepares them so; None: takes prepared images.
        normalise: give unit vectors.
    """

    def __init__(self, backbone: nn.Module, input: Preprocessing | None, normalise: bool) -> None:
        super().__init__()
        self.backbone, self.input, self.normalise = backbone, input, normalise

    def forward(self, image: Tensor) -> Tensor:
        if self.input is not None:
            mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (self.input.mean, self.input.std))
            image = image.permute(0, 3, 1, 2).float()
            if self.input.channels == "bgr":
                image = image.flip(1)
            image = (image - mean) / std
        embedding: Tensor = self.backbone(image)
        return nn.functional.normalize(embedding) if self.normalise else embedding


def onnx_content(
    model: Model,
    metadata: dict[str, str],
    *,
    precision: str,
    opset: int | None,
    preprocessing: bool,
    normalise: bool,
    sample_NHWC: np.ndarray | None,
) -> bytes:
    """The bytes of the file, whose embeddings of `sample_NHWC` (None: of noise) have been compared.

    Raises:
        ConfigError: the network cannot be written with this `opset`.
        FacerecError: the embeddings are others.
    """
    import onnx
    import onnxruntime

    newest = onnx.defs.onnx_opset_version()
    require(
        opset is None or 1 <= opset <= newest, "opset", opset, f"must be a number from 1 to {newest}, or null"
    )
    backbone = model.backbone.cpu()
    network = OnnxBackbone(backbone, model.input if preprocessing else None, normalise).eval()
    if sample_NHWC is None:
        sample_NHWC = np.random.default_rng(0).integers(0, 256, (4, *model.input.shape, 3), np.uint8)

    def prepared(image_NHWC: np.ndarray) -> Tensor:
        image = torch.from_numpy(image_NHWC)
        return image if preprocessing else model.input.normalise(image).contiguous()

    proto = _exported(network, prepared(sample_NHWC[:2]), opset)
    if precision == "fp16":
        proto = _halved(proto)
    elif precision == "int8":
        proto = _quantised(proto, [prepared(one[None]).numpy() for one in sample_NHWC])
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for images in (sample_NHWC[:1], sample_NHWC[:3]):
        _compare(network, session, prepared(images), LOWEST[precision])
    return content


def _exported(network: nn.Module, example: Tensor, opset: int | None) -> onnx.ModelProto:
    with _quiet("torch.onnx", "onnxscript"):
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            dynamo=True,
            verbose=False,
            opset_version=opset,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    # The exporter leaves an opset that it cannot convert to, with a warning at most.
    used = next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    hint = f"this network cannot be written with it; opset={used} can, and so may newer ones"
    require(opset in (None, used), "opset", opset, hint)
    return proto


def _halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in fp16; the input and the embedding keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers below fp16's smallest, which become that
        halved: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True)
    return halved


def _quantised(proto: onnx.ModelProto, images: list[np.ndarray]) -> onnx.ModelProto:
    """Convolutions and matrix products in int8, one scale per output channel, ranges from the images."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        remaining = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.remaining, None)
            return None if image is None else {"image": image}

    with tempfile.TemporaryDirectory() as folder, _quiet("root"):
        exported, folded, small = (Path(folder, f"{name}.onnx") for name in ("exported", "folded", "small"))
        onnx.save(proto, exported)
        quant_pre_process(exported, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            small,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )
        return onnx.load(small)


def _compare(network: nn.Module, session: Any, image: Tensor, lowest: float) -> None:
    """Raise `FacerecError` unless both give the same directions, to a cosine of `lowest`."""
    with torch.inference_mode():
        expected_ND = network(image).numpy()
    (got_ND,) = session.run(None, {"image": image.numpy()})
    cosine_N = (unit_rows(expected_ND) * unit_rows(got_ND)).sum(1)
    if not cosine_N.min() >= lowest:
        raise FacerecError(
            f"the exported network gives other embeddings (cosine {cosine_N.min():.6f} with the original); "
            "nothing was written"
        )


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
