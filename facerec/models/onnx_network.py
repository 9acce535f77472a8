"""ONNX networks, run by onnxruntime in a process of their own, with limits of time and memory.

Shape suffixes: B images, C channels, H height, W width, D embedding size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from facerec.errors import CheckpointError, ConfigError, UserError
from facerec.images.preprocessing import Preprocessing
from facerec.models import onnx_worker
from facerec.models.networks import ForeignNetwork, Output, first_line

log = logging.getLogger("facerec.evaluation")

_SECONDS: Final = 60.0  # for opening a network (as long again per GiB), and for each batch
_SECONDS_IMAGE: Final = 5.0  # more for each image of a batch
_PIXELS: Final = 2.0  # a mean or deviation beyond this is one of pixels
_MEMORY: Final = 8 << 30  # bytes, besides four times the size of the network's files
_TYPES: Final = {  # of inputs; a network of uint8 prepares the pixels itself
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
}


class OnnxNetwork(ForeignNetwork):
    """An ONNX network; its external data must lie in its folder.

    Attributes:
        size: (height, width) it takes; None: any.
        inside: how it prepares what it is given before its first layer; None: not at all.
        outside: what is to be done before that, as settings of `Preprocessing`; empty: not known.
        metadata: of the file.
        numbers: how many its tensors hold, nearly all of them parameters.

    Raises:
        UserError: onnxruntime or onnx is not installed.
        CheckpointError: no ONNX file, or none from images to embeddings.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path)
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{self.where}: running ONNX needs {package}; pip install 'facerec[onnx]'")
        cuda = None
        if device.type == "cuda":
            cuda = torch.cuda.current_device() if device.index is None else device.index
        opening = {
            "path": str(path.absolute()),
            "threads": torch.get_num_threads(),
            "cuda": cuda,
            "memory": _MEMORY,
            "seconds": _SECONDS,
            "sys_path": sys.path,
        }
        self._worker = _Worker(self.where, opening)
        try:
            answer, _ = self._worker.ask(None)
        except _NetworkError as error:
            raise CheckpointError(f"{self.where}: onnxruntime cannot load it: {first_line(error)}") from None
        if cuda is not None and not answer["cuda"]:
            log.warning("%s: onnxruntime has no CUDA here, so it runs on the CPU", self.where)
        self.metadata: dict[str, str] = answer["metadata"]
        self.numbers: int = answer["numbers"]
        self.files = [path, *map(Path, answer["files"])]
        self._names: list[str] = answer["outputs"]
        inputs = answer["inputs"]
        self._name, kind, shape = inputs[0] if len(inputs) == 1 else ("", "", [])
        self._last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3  # channels-last, as of TensorFlow
        batch, channels, *size = [shape[i] for i in (0, 3, 1, 2)] if self._last else (shape or [0, 0])
        if len(size) != 2 or (isinstance(channels, int) and channels != 3) or kind not in _TYPES:
            taken = ", ".join(" ".join(map(str, one)) for one in inputs)
            hint = "a network of faces takes one input of floats or uint8 (N, 3, height, width)"
            raise CheckpointError(f"{self.where}: takes {taken}; {hint}")
        self._type = _TYPES[kind]
        self.inside = _inside(answer["preparation"])
        self.outside = _outside(self.inside)
        self.takes_pixels = self._type == "uint8" or self.outside.get("std") == 1
        self.batch = batch if isinstance(batch, int) and batch > 0 else None
        fixed = [side for side in size if isinstance(side, int) and side > 0]
        self.size = (fixed[0], fixed[1]) if len(fixed) == 2 else None

    def prepared(self, image_BCHW: Tensor) -> Tensor:
        """Images as its first layer gets them."""
        return image_BCHW if self.inside is None else self.inside.of_floats(image_BCHW)

    def layers(self) -> dict[str, Tensor]:
        """The numbers of its layers, in topological order, as a state dict whose modules are numbered."""
        try:
            answer, values = self._worker.ask(None, {"layers": str(self.files[0].absolute())})
        except _NetworkError as error:
            raise CheckpointError(f"{self.where}: its layers cannot be read: {first_line(error)}") from None
        return {
            name: value
            for name, value in zip(answer["names"], values, strict=True)
            if isinstance(name, str) and value is not None
        }

    def _run(self, image_BCHW: Tensor) -> list[Output]:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            hint = "leave precision at fp32"
            raise UserError(f"{self.where}: keeps the precision it was exported with; {hint}")
        image = image_BCHW.permute(0, 2, 3, 1) if self._last else image_BCHW
        given = np.ascontiguousarray(image.cpu().numpy(), dtype=self._type)
        names = self._names if self._output is None else [self._names[self._output]]
        answer, values = self._worker.ask(given, {"input": self._name, "outputs": names})
        outputs = [
            Output(name, tuple(shape), value)
            for name, (shape, _), value in zip(names, answer["outputs"], values, strict=True)
        ]
        # The chosen one alone was asked for; it keeps its index.
        none = [Output("", (), None)] * (self._output or 0)
        return outputs if self._output is None else [*none, *outputs]


def _inside(found: dict[str, Any] | None) -> Preprocessing | None:
    """What `onnx_worker` has found, to the digits of float32; None also for what is no preprocessing."""
    if found is None:
        return None
    for key in ("mean", "std"):
        numbers = [float(f"{number:.6g}") for number in found[key]]
        found[key] = numbers[0] if len({*numbers}) == 1 else numbers
    with contextlib.suppress(ConfigError):
        return Preprocessing(**found)
    return None


def _outside(inside: Preprocessing | None) -> dict[str, Any]:
    """Pixels from 0 to 255 where numbers of that size are subtracted or divided by, else from 0 to 1."""
    if inside is None:
        return {}
    mean, std = (torch.tensor(one) for one in (inside.mean, inside.std))
    if max(mean.max(), std.max()) > _PIXELS:
        return {"mean": 0.0, "std": 1.0}
    return {"mean": 0.0, "std": 255.0} if mean.min() > 0 else {}


class _NetworkError(Exception):
    """An error of onnxruntime over a network or a batch."""


class _Worker:
    """The process of `onnx_worker`, started on the first request and again after it has ended.

    Args:
        where: begins the errors.
        opening: the first request.
    """

    def __init__(self, where: str, opening: dict[str, Any]) -> None:
        self.where, self._opening = where, opening
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(
        self, images: np.ndarray | None, request: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Tensor | None]]:
        """Open the network (no request), run it, or read of it; returns the answer and the arrays.

        Raises:
            CheckpointError: the network is refused, or its process has ended: time, memory or a crash.
            _NetworkError: onnxruntime failed.
        """
        with self._lock:
            seconds, task = _SECONDS, "opening it"
            try:
                if self._process is None:
                    self._start()
                    answer = self._exchange(self._opening)
                if request is None:
                    return answer, []
                asked: dict[str, Any] = {}
                if images is None:
                    task = "reading its layers"
                else:
                    seconds += _SECONDS_IMAGE * len(images)
                    task = f"a batch of {len(images)}"
                    asked = {"shape": images.shape, "type": str(images.dtype)}
                answer = self._exchange({**asked, "seconds": seconds, **request}, images)
                return answer, [self._value(shape) if good else None for shape, good in answer["outputs"]]
            except (EOFError, OSError):
                raise CheckpointError(f"{self.where}: {self._end_reason(seconds, task)}") from None
            except _NetworkError:
                if images is None:
                    self._end()
                raise
            except BaseException:  # half an answer must not be taken for the next one
                self._end()
                raise

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(onnx_worker.__file__)), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"MALLOC_ARENA_MAX": "4"},
            )
        self._finalizer = weakref.finalize(self, _kill, self._process, self._connection)

    def _exchange(self, request: dict[str, Any], images: np.ndarray | None = None) -> dict[str, Any]:
        onnx_worker.send(self._connection, request, [] if images is None else [images])
        answer = onnx_worker.receive(self._connection)
        if "refused" in answer:
            raise CheckpointError(f"{self.where}: {answer['refused']}")
        if "error" in answer:
            raise _NetworkError(answer["error"])
        return answer

    def _value(self, shape: list[int]) -> Tensor:
        content = bytearray(self._connection.recv_bytes(4 * math.prod(shape)))
        return torch.from_numpy(np.frombuffer(content, np.float32).reshape(shape))

    def _end_reason(self, seconds: float, task: str) -> str:
        assert self._process is not None
        status = self._process.wait()
        self._end()
        if status == -signal.SIGALRM:
            return f"was stopped, for {task} took it more than {seconds:g} s"
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"onnxruntime crashed over {task} ({name}), or had no memory left"

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _kill(process: subprocess.Popen[bytes], connection: Any) -> None:
    process.kill()
    process.wait()
    connection.close()
