"""ONNX networks, run by onnxruntime in a process of their own, with limits of time and memory.

Shape suffixes: B images, C channels, H height, W width, D embedding size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from facerec.errors import CheckpointError, UserError
from facerec.evaluation import onnx_worker
from facerec.evaluation.networks import ForeignNetwork, Output, first_line

log = logging.getLogger("facerec.evaluation")

_SECONDS: Final = 60.0  # for opening a network (as long again per GiB), and for each batch
_SECONDS_IMAGE: Final = 5.0  # more for each image of a batch
_MEMORY: Final = 8 << 30  # bytes, besides four times the size of the network's files


class OnnxNetwork(ForeignNetwork):
    """An ONNX network, run by onnxruntime in a process of its own, with limits of time and memory.

    Args:
        path: the file; what it stores outside of itself must lie in its folder.
        device: CUDA is used where onnxruntime was built with it.

    Raises:
        UserError: onnxruntime is not installed.
        CheckpointError: no ONNX file, or none from images to embeddings.

    Attributes:
        size: (height, width) it takes; None: any.
        metadata: the words in the file's metadata.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path)
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError(f"{self.where}: running ONNX needs onnxruntime; pip install 'facerec[onnx]'")
        on_cuda = device.type == "cuda"
        opening = {
            "path": str(path.absolute()),
            "threads": torch.get_num_threads(),
            "cuda": (torch.cuda.current_device() if device.index is None else device.index)
            if on_cuda
            else None,
            "memory": _MEMORY,
            "seconds": _SECONDS,
            "sys_path": sys.path,
        }
        self._worker = _Worker(self.where, opening)
        try:
            said, _ = self._worker.ask(None)
        except _NetworkError as error:
            raise CheckpointError(f"{self.where}: onnxruntime cannot load it: {first_line(error)}") from None
        if on_cuda and not said["cuda"]:
            log.warning("%s: onnxruntime has no CUDA here, so it runs on the CPU", self.where)
        self.metadata: dict[str, str] = said["metadata"]
        self.files = [path, *map(Path, said["files"])]
        self._names: list[str] = said["outputs"]
        inputs = said["inputs"]
        kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
        name, kind, shape = inputs[0] if len(inputs) == 1 else ("", "", [])
        self._last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3  # channels-last, as of TensorFlow
        batch, channels, *size = [shape[i] for i in ((0, 3, 1, 2) if self._last else range(len(shape)))] or [
            0,
            0,
        ]
        if len(size) != 2 or (isinstance(channels, int) and channels != 3) or kind not in kinds:
            taken = ", ".join(" ".join(map(str, one)) for one in inputs)
            raise CheckpointError(
                f"{self.where}: takes {taken}; a network of faces takes one input of floats "
                "(N, 3, height, width)"
            )
        self._name, self._type = name, kinds[kind]
        self.batch = batch if isinstance(batch, int) and batch > 0 else None
        fixed = [side for side in size if isinstance(side, int) and side > 0]
        self.size = (fixed[0], fixed[1]) if len(fixed) == 2 else None

    def _run(self, image_BCHW: Tensor) -> list[Output]:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise UserError(
                f"{self.where}: keeps the precision it was exported with; leave precision at fp32"
            )
        image = image_BCHW.permute(0, 2, 3, 1) if self._last else image_BCHW
        given = np.ascontiguousarray(image.cpu().numpy(), dtype=self._type)
        names = self._names if self._output is None else [self._names[self._output]]
        said, values = self._worker.ask(given, {"input": self._name, "outputs": names})
        outputs = [
            Output(name, tuple(shape), value)
            for name, (shape, _), value in zip(names, said["outputs"], values, strict=True)
        ]
        # The chosen one alone has come; it keeps its place.
        none = [Output("", (), None)] * (self._output or 0)
        return outputs if self._output is None else [*none, *outputs]


class _NetworkError(Exception):
    """What onnxruntime said of a network or of a batch."""


class _Worker:
    """The process of `onnx_worker`: started when it is asked, and again after it was ended.

    Args:
        where: begins its errors.
        opening: the first request.
    """

    def __init__(self, where: str, opening: dict[str, Any]) -> None:
        self.where, self._opening = where, opening
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(
        self, images: np.ndarray | None, request: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Tensor | None]]:
        """Open the network (no images), or run it; returns the answer and the outputs.

        Raises:
            CheckpointError: the network is refused, or its process has ended: time, memory or a crash.
            _NetworkError: onnxruntime did not do it.
        """
        with self._lock:
            seconds, what = _SECONDS, "opening it"
            try:
                if self._process is None:
                    self._process = self._started()
                    said = self._exchange(self._opening)
                if images is None:
                    return said, []
                seconds = _SECONDS + _SECONDS_IMAGE * len(images)
                what = f"a batch of {len(images)}"
                asked = {"shape": images.shape, "type": str(images.dtype), "seconds": seconds}
                said = self._exchange(asked | (request or {}), images)
                return said, [self._value(shape) if good else None for shape, good in said["outputs"]]
            except (EOFError, BrokenPipeError):
                raise CheckpointError(f"{self.where}: {self._ended(seconds, what)}") from None
            except _NetworkError:
                if images is None:
                    self._end()
                raise
            except BaseException:  # half an answer must not be taken for the next one
                self._end()
                raise

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(onnx_worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MALLOC_ARENA_MAX": "4"},
        )
        self._finalizer = weakref.finalize(self, _kill, process)
        return process

    def _exchange(self, request: dict[str, Any], images: np.ndarray | None = None) -> dict[str, Any]:
        onnx_worker.send(self._pipe("stdin"), request, [] if images is None else [images])
        said = onnx_worker.receive(self._pipe("stdout"))
        if "refused" in said:
            raise CheckpointError(f"{self.where}: {said['refused']}")
        if "error" in said:
            raise _NetworkError(said["error"])
        return said

    def _value(self, shape: list[int]) -> Tensor:
        content = onnx_worker.fill(self._pipe("stdout"), 4 * math.prod(shape))
        return torch.from_numpy(np.frombuffer(content, np.float32).reshape(shape))

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] = getattr(self._process, name)
        return pipe

    def _ended(self, seconds: float, what: str) -> str:
        """Why the process is no more."""
        assert self._process is not None
        status = self._process.wait()
        self._end()
        if status == -signal.SIGALRM:
            return f"was stopped, for {what} took it more than {seconds:g} s"
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"onnxruntime crashed over {what} ({name}), or had no memory left"

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    # This closes its pipes, one of which may hold what nobody will read, and waits.
    with contextlib.suppress(BrokenPipeError), process:
        pass
