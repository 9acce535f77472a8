"""Networks that come with a graph of their own, ONNX and TorchScript, as modules from pictures to embeddings.

Shape suffixes: B pictures, C channels, H height, W width, D embedding size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facerec.errors import CheckpointError, UserError

# Batch sizes to try where a network does not say which one it was traced with.
_TRIED = (1, 2, 4, 8, 16, 32, 64, 128)


class ForeignNetwork(nn.Module):
    """A network whose batch size may be fixed: it is fed in pieces, the last one filled up with zeros.

    Subclasses write `_run`, from (B, 3, H, W) float32 to all outputs.

    Attributes:
        batch: the only number of pictures it takes at once; None: any.
    """

    batch: int | None = None

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.where = f"ckpt={path}"

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Raw embeddings (B, D), float32, on the CPU or the device that made them."""
        count = self.batch or len(image_BCHW)
        parts = []
        for piece in image_BCHW.split(count):
            missing = count - len(piece)
            filled = nn.functional.pad(piece, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else piece
            embedding_BD = _embedding(self._run(filled), count)
            if embedding_BD is None:
                raise CheckpointError(f"{self.where}: gives no embeddings for {count} pictures")
            parts.append(embedding_BD[: len(piece)].float())
        return torch.cat(parts)

    def probe(self, shape: tuple[int, int]) -> int:
        """Find out by running which batch sizes it takes; returns the embedding size D.

        Args:
            shape: (height, width) of its pictures.

        Raises:
            CheckpointError: it takes no such pictures, or gives no (B, D).
        """
        generator = torch.Generator().manual_seed(0)
        image_BCHW = torch.rand(max(_TRIED), 3, *shape, generator=generator) * 2 - 1
        errors: list[str] = []
        with torch.inference_mode():
            for count in (self.batch,) if self.batch else _TRIED:
                alone_BD = self._attempt(image_BCHW[:1].expand(count, -1, -1, -1), errors)
                if alone_BD is None:
                    continue
                if self.batch is None and count == 1:
                    more_BD = self._attempt(image_BCHW[:3], errors)
                    if more_BD is None or not torch.allclose(more_BD[:1], alone_BD, rtol=1e-2, atol=1e-3):
                        self.batch = 1  # whatever the file says: for several pictures it means something else
                else:
                    self.batch = count
                return alone_BD.shape[1]
        size = "×".join(map(str, shape))
        raise CheckpointError(
            f"{self.where}: gives no embeddings (B, D) for pictures (B, 3, {size}): {errors[0]}; if it is "
            "made for another size, set input.size"
        )

    def _attempt(self, image_BCHW: Tensor, errors: list[str]) -> Tensor | None:
        try:
            outputs = self._run(image_BCHW.contiguous())
        # Whatever its operators raise, of types that differ by runtime and version: it does not take these.
        except Exception as error:
            errors.append(_first_line(error))
            return None
        embedding_BD = _embedding(outputs, len(image_BCHW))
        if embedding_BD is None:
            shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
            errors.append(f"it returns {shapes or 'no tensor'} for {len(image_BCHW)} pictures")
        return embedding_BD

    def _run(self, image_BCHW: Tensor) -> list[Tensor]:
        raise NotImplementedError


class OnnxNetwork(ForeignNetwork):
    """An ONNX network, run by onnxruntime.

    Args:
        path: the file; what it stores outside of itself is looked for in its folder.
        device: CUDA is used where onnxruntime was built with it.

    Raises:
        UserError: onnxruntime is not installed.
        CheckpointError: no ONNX file, or none from pictures to embeddings.

    Attributes:
        size: (height, width) it takes; None: any.
        metadata: the words in the file's metadata.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{self.where}: running ONNX needs onnxruntime; pip install 'facerec[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others decode meanwhile
        options.log_severity_level = 3  # it warns of how files were written
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no base class of their own
            raise CheckpointError(
                f"{self.where}: onnxruntime cannot load it: {_first_line(error)}"
            ) from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        inputs = self._session.get_inputs()
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
        shape = inputs[0].shape if len(inputs) == 1 else []
        self._last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3  # channels-last, as of TensorFlow
        batch, channels, *size = [shape[i] for i in ((0, 3, 1, 2) if self._last else range(len(shape)))] or [
            0,
            0,
        ]
        if len(size) != 2 or (isinstance(channels, int) and channels != 3) or inputs[0].type not in kinds:
            taken = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise CheckpointError(
                f"{self.where}: takes {taken}; a network of faces takes one input of floats "
                "(N, 3, height, width)"
            )
        self._name, self._type = inputs[0].name, kinds[inputs[0].type]
        self.batch = batch if isinstance(batch, int) and batch > 0 else None
        fixed = [side for side in size if isinstance(side, int) and side > 0]
        self.size = (fixed[0], fixed[1]) if len(fixed) == 2 else None

    def _run(self, image_BCHW: Tensor) -> list[Tensor]:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise UserError(
                f"{self.where}: keeps the precision it was exported with; leave precision at fp32"
            )
        image = image_BCHW.permute(0, 2, 3, 1) if self._last else image_BCHW
        given = {self._name: np.ascontiguousarray(image.cpu().numpy(), dtype=self._type)}
        outputs: Sequence[Any] = self._session.run(None, given)
        return [
            torch.from_numpy(one) for one in outputs if isinstance(one, np.ndarray) and one.dtype.kind == "f"
        ]


class ScriptedNetwork(ForeignNetwork):
    """A TorchScript program. Loading it may run what is in it: only for files that are trusted.

    Raises:
        CheckpointError: no TorchScript, or none that this version of torch reads.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path)
        self._device = device
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch asks for torch.export; files remain
                program = torch.jit.load(str(path), map_location=device)
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.where}: torch cannot load it: {_first_line(error)}") from error
        if hasattr(program, "training"):  # a frozen one has no modes any more
            program.eval()
        self._program = (program,)  # not a submodule: its modules may lack what others have
        self._type = next(
            (one.dtype for one in program.parameters() if one.is_floating_point()), torch.float32
        )

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the program, which say where it runs."""
        return self._program[0].parameters(recurse)

    def _run(self, image_BCHW: Tensor) -> list[Tensor]:
        result = self._program[0](image_BCHW.to(self._device, self._type))
        outputs = result.values() if isinstance(result, dict) else result
        several = [outputs] if isinstance(outputs, Tensor) else outputs
        return [one for one in several if isinstance(one, Tensor)]


def _embedding(outputs: Sequence[Tensor], count: int) -> Tensor | None:
    """The first output that is a row of at least two numbers for each picture: (B, D) or (B, D, 1, 1)."""
    for output in outputs:
        shape = output.shape
        if output.ndim >= 2 and shape[0] == count and max(shape[1:]) == output[0].numel() >= 2:
            return output.flatten(1)
    return None


def _first_line(error: Exception) -> str:
    """The line of an error that says most: TorchScript ends with it, onnxruntime begins."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0][:300]
