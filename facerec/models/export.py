"""Write a trained backbone for other programs: ONNX, safetensors, or a folder of the Hugging Face hub.

What a file cannot say by its form stands in its metadata: preprocessing, step, backbone, threshold. ONNX is
exported by torch, made smaller by onnxruntime's own tools, and compared with the original.

Shape suffixes: N images, H height, W width, C channels, D embedding size.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from facerec.errors import FacerecError, UserError, require
from facerec.files import write_bytes
from facerec.models import hub
from facerec.models.hub import as_metadata
from facerec.models.model import Model, Threshold
from facerec.models.networks import ForeignNetwork
from facerec.models.recognition import network_settings
from facerec.models.weights import read_safetensors
from facerec.vectors import unit_rows

if TYPE_CHECKING:
    import onnx

Format = Literal["onnx", "safetensors", "hub"]
Precision = Literal["fp32", "fp16", "int8"]

# The cosine with the original's embeddings below which a file is not written.
_LOWEST: Final = {"fp32": 1 - 1e-5, "fp16": 1 - 1e-3, "int8": 0.7}


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
    settings = described(model)
    if format == "onnx":
        needed = sample_NHWC is not None or precision != "int8"
        require(needed, "precision", precision, "needs calibration=IMAGES, some hundred aligned faces")
        if preprocessing:
            settings["input"] |= {"mean": 0.0, "std": 1.0, "channels": "rgb"}
        network = OnnxBackbone(model, preprocessing, normalise).eval()
        content = _onnx(network, as_metadata(settings), precision, opset, sample_NHWC)
    else:
        require(precision != "int8", "precision", precision, "needs format=onnx")
        state = {name: value.contiguous().cpu() for name, value in model.backbone.state_dict().items()}
        if precision == "fp16":
            state = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
        content = _safetensors(state, {"format": "pt"} | as_metadata(settings))
    if format == "hub":
        hub.write(path, content, settings)
    else:
        write_bytes(path, content)
    return path


def described(model: Model) -> dict[str, Any]:
    """Return what a model's files say of it: input, step, backbone, threshold, as far as they are known."""
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

        content = _with_metadata(onnx.load(path), as_metadata(settings))
    else:
        state, metadata = read_safetensors(path)
        content = _safetensors(state, metadata | as_metadata(settings))
    write_bytes(path, content)


def _safetensors(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise _missing("safetensors", error) from error
    content: bytes = save(state, metadata=metadata)
    return content


def _missing(format: str, error: ImportError) -> UserError:
    return UserError(f"format={format}: needs the package {error.name}; pip install 'facerec[export]'")


# ONNX ------------------------------------------------------------------------------------------------------


class OnnxBackbone(nn.Module):
    """A backbone with what the file is to do besides: prepare the pixels, divide by the length.

    Args:
        model: on the CPU; its backbone takes (N, 3, H, W) floats.
        preprocessing: take uint8 RGB (N, H, W, 3) and prepare it; else prepared images are taken.
        normalise: give unit vectors.
    """

    def __init__(self, model: Model, preprocessing: bool, normalise: bool) -> None:
        super().__init__()
        self.backbone, self.input = model.backbone.cpu(), model.input
        self.preprocessing, self.normalise = preprocessing, normalise

    def forward(self, image: Tensor) -> Tensor:
        if self.preprocessing:
            mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (self.input.mean, self.input.std))
            image = image.permute(0, 3, 1, 2).float()
            if self.input.channels == "bgr":
                image = image.flip(1)
            image = (image - mean) / std
        embedding: Tensor = self.backbone(image)
        return nn.functional.normalize(embedding) if self.normalise else embedding

    def taken(self, image_NHWC: np.ndarray) -> Tensor:
        """Images uint8 RGB as `forward` takes them."""
        image = torch.from_numpy(image_NHWC)
        return image if self.preprocessing else self.input.normalise(image).contiguous()


def _onnx(
    network: OnnxBackbone,
    metadata: Mapping[str, str],
    precision: Precision,
    opset: int | None,
    sample_NHWC: np.ndarray | None,
) -> bytes:
    """The bytes of the file, whose embeddings of `sample_NHWC` (None: of noise) have been compared."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - needed by torch's exporter, whose own error is less clear
    except ImportError as error:
        raise _missing("onnx", error) from error
    newest = onnx.defs.onnx_opset_version()
    require(
        opset is None or 1 <= opset <= newest, "opset", opset, f"must be a number from 1 to {newest}, or null"
    )
    if sample_NHWC is None:
        sample_NHWC = np.random.default_rng(0).integers(0, 256, (4, *network.input.shape, 3), np.uint8)
    with _quiet():
        proto = _exported(network, network.taken(sample_NHWC[:2]), opset)
        if precision == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            proto = convert_float_to_float16(proto, keep_io_types=True)
        elif precision == "int8":
            proto = _quantised(proto, [network.taken(one[None]).numpy() for one in sample_NHWC])
    content = _with_metadata(proto, metadata)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for image in (network.taken(sample_NHWC[:1]), network.taken(sample_NHWC[:3])):
        with torch.inference_mode():
            expected_ND = network(image).numpy()
        (got_ND,) = session.run(None, {"image": image.numpy()})
        cosine_N = (unit_rows(expected_ND) * unit_rows(got_ND)).sum(1)
        if not cosine_N.min() >= _LOWEST[precision]:
            raise FacerecError(
                f"the exported network gives other embeddings (cosine {cosine_N.min():.6f} with the "
                "original); nothing was written"
            )
    return content


def _exported(network: nn.Module, example: Tensor, opset: int | None) -> onnx.ModelProto:
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

    with tempfile.TemporaryDirectory() as folder:
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


def _with_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from warnings and tracebacks of what is checked afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers below fp16's smallest, which become that
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
