"""Models from elsewhere as small real files, ONNX networks and TorchScript programs; images for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from facerec.models.model import Model
from facerec.packs.verification import VerificationSet, verification_set

SIZE, WIDTH = 16, 8
GRID = 4  # images are patterns of 4×4 squares


def weight() -> np.ndarray:
    """Return the matrix by which the networks below multiply images (flattened, channels first)."""
    generator = np.random.default_rng(0)
    return generator.normal(size=(3 * SIZE * SIZE, WIDTH)).astype(np.float32) / 10


def onnx_file(
    path: Path,
    *,
    batch: int | str = "N",
    shape: tuple[int | str, ...] = (3, SIZE, SIZE),
    kind: str = "FLOAT",
    baked: int | None = None,
    outputs: tuple[str, ...] = ("embedding",),
    second_input: bool = False,
    external: bool = False,
    location: str | None = None,
) -> Path:
    """A network of one matrix product. `baked`: a batch size inside of it that its inputs do not tell."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    number = getattr(TensorProto, kind)
    features = int(np.prod([SIZE if isinstance(side, str) else side for side in shape]))
    nodes, source = [], "image"
    if shape[-1] == 3 and len(shape) == 3:
        nodes.append(helper.make_node("Transpose", [source], ["chw"], perm=[0, 3, 1, 2]))
        source = "chw"
    values = [
        numpy_helper.from_array(weight()[:features].astype(helper.tensor_dtype_to_np_dtype(number)), "w")
    ]
    if baked is None:
        nodes.append(helper.make_node("Flatten", [source], ["flat"]))
    else:
        values.append(numpy_helper.from_array(np.array([baked, features], np.int64), "baked"))
        nodes.append(helper.make_node("Reshape", [source, "baked"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["embedding"]))
    nodes.append(helper.make_node("ReduceL2", ["embedding"], ["norm"], axes=[1]))
    inputs = [helper.make_tensor_value_info("image", number, [batch, *shape])]
    if second_input:
        inputs.append(helper.make_tensor_value_info("other", number, [batch, 1]))
    results = [helper.make_tensor_value_info(name, number, None) for name in outputs]
    graph = helper.make_graph(nodes, "face", inputs, results, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if external:
        onnx.save_model(
            model, path, save_as_external_data=True, location=location or f"{path.stem}.bin", size_threshold=0
        )
    else:
        onnx.save_model(model, path)
    return path


class Colour(nn.Module):
    """Looks at one channel alone, in squares, and at what is above the middle grey and what is below it."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.avg_pool2d(image[:, self.channel : self.channel + 1], 4).flatten(1)
        return torch.cat([torch.relu(mean), torch.relu(-mean)], dim=1)


def colour_file(path: Path, channel: int) -> Path:
    """`Colour` as TorchScript."""
    torch.jit.trace(Colour(channel), torch.zeros(2, 3, SIZE, SIZE)).save(str(path))
    return path


def png(pixels: np.ndarray) -> bytes:
    """An image's bytes; what was drawn is what is read."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def red_identities(pairs: int = 120, seed: int = 0) -> VerificationSet:
    """Pairs of images of identities whose patterns are in the red channel; green and blue are chance."""
    generator = np.random.default_rng(seed)

    def squares(pattern: np.ndarray) -> np.ndarray:
        return np.kron(pattern, np.ones((SIZE // GRID, SIZE // GRID)))

    def image(identity: np.ndarray) -> bytes:
        noise = generator.normal(0, 40, (GRID, GRID))
        other = generator.uniform(0, 255, (2, GRID, GRID))
        channels = [squares(identity + noise), squares(other[0]), squares(other[1])]
        return png(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))

    images, answers = [], []
    for pair in range(pairs):
        first, second = generator.uniform(0, 255, (2, GRID, GRID))
        same = pair % 2 == 0
        images += [image(first), image(first if same else second)]
        answers.append(same)
    return verification_set("red", images, answers)


def pixels(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Images of chance, uint8 (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def expected(images: np.ndarray, **preparing: Any) -> np.ndarray:
    """Return the output of `onnx_file`'s network for images, computed here."""
    mean, std = preparing.get("mean", 127.5), preparing.get("std", 127.5)
    prepared = (images.transpose(0, 3, 1, 2).astype(np.float32) - mean) / std
    result: np.ndarray = prepared.reshape(len(images), -1) @ weight()
    return result


def close(one: Any, other: Any, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


def raw(model: Model, images: np.ndarray) -> np.ndarray:
    return model.embed(images, flip=False, normalise=False).numpy()
