"""Program that runs one ONNX network for `facerec.models.onnx_network`, within limits of time and memory.

It is started as a script with the number of a socket, and imports the standard library, NumPy, onnx and
onnxruntime alone. The first request names the network, each further one brings a batch of images. The kernel
ends this process when a request has taken its time (SIGALRM), and refuses it memory beyond the limit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

_MOST_NUMBERS: Final = 1 << 16  # of an output, per image: more is no embedding


class Refused(Exception):
    """The network may not be used, for the reason in the text."""


def send(connection: Connection, message: dict[str, Any], arrays: Iterable[Any] = ()) -> None:
    """Send a message and the bytes of arrays; JSON, so that nothing here or there is unpickled."""
    connection.send_bytes(json.dumps(message).encode())
    for array in arrays:
        connection.send_bytes(array.reshape(-1).view("uint8").data)


def receive(connection: Connection) -> dict[str, Any]:
    """Receive a message; the bytes of its arrays come next."""
    message: dict[str, Any] = json.loads(connection.recv_bytes())
    return message


def external_files(path: Path, tensors: Iterable[Any]) -> list[Path]:
    """The other files that hold its tensors; raises `Refused` for one outside the folder of `path`."""
    folders = {path.absolute().parent.resolve(), path.resolve().parent}  # the second: a cache of links
    names = {one.value for tensor in tensors for one in tensor.external_data if one.key == "location"}
    found = []
    for name in sorted(names):
        file = Path(os.path.realpath(path.absolute().parent / name.replace("\0", "")))
        if not any(file.is_relative_to(folder) for folder in folders):
            raise Refused(f"names {name[:200]!r} for its numbers, a file outside of its folder")
        if not file.is_file():
            raise Refused(f"names {name[:200]!r} for its numbers, and there is no such file in its folder")
        found.append(file)
    return found


def tensors_in(path: Path) -> list[Any]:
    """All tensors, wherever in the network they are."""
    import onnx
    from google.protobuf.message import DecodeError

    content = path.read_bytes()
    if not content:
        raise Refused("is empty")
    found = []
    try:
        waiting: list[Any] = [onnx.ModelProto.FromString(content)]
        while waiting:
            message = waiting.pop()
            if isinstance(message, onnx.TensorProto):
                found.append(message)
            for field, value in message.ListFields():
                if field.message_type is not None:
                    waiting += [value] if hasattr(value, "ListFields") else value
    except (DecodeError, UnicodeDecodeError) as error:
        raise Refused("is damaged, or no ONNX") from error
    return found


def _open(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Open the session of onnxruntime; returns it and a description of the network."""
    path = Path(request["path"])
    tensors = tensors_in(path)
    files = external_files(path, tensors)
    numbers = sum(math.prod(tensor.dims) for tensor in tensors)
    del tensors
    size = sum(file.stat().st_size for file in (path, *files))
    _limit_memory(request["memory"] + 4 * size)
    _allow(request["seconds"] * (1 + size / 2**30))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others decode meanwhile
    options.add_session_config_entry("session.load_model_format", "ONNX")  # which `external_files` has read
    options.log_severity_level = 4
    cuda = request["cuda"]
    usable = cuda is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    first = [("CUDAExecutionProvider", {"device_id": cuda})] if usable else []
    session = onnxruntime.InferenceSession(str(path), options, providers=[*first, "CPUExecutionProvider"])
    return session, {
        "metadata": session.get_modelmeta().custom_metadata_map,
        "inputs": [[one.name, one.type, one.shape] for one in session.get_inputs()],
        "numbers": numbers,
        "outputs": [one.name for one in session.get_outputs()],
        "files": [str(file) for file in files],
        "cuda": "CUDAExecutionProvider" in session.get_providers(),
    }


def _run(session: Any, request: dict[str, Any], images: Any) -> tuple[dict[str, Any], list[Any]]:
    """Run a batch; outputs come as float32, those that cannot be embeddings as their shape alone."""
    import numpy as np

    results = session.run(request["outputs"], {request["input"]: images})
    described: list[Any] = []
    arrays = []
    for one in results:
        good = isinstance(one, np.ndarray) and one.dtype.kind == "f"
        good = good and one.size <= _MOST_NUMBERS * len(images)
        described.append([list(one.shape) if isinstance(one, np.ndarray) else [], good])
        if good:
            arrays.append(np.ascontiguousarray(one, np.float32))
    return {"outputs": described}, arrays


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # an administrator's limit that is lower already
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _allow(seconds: float) -> None:
    """Let the kernel end this process in `seconds`; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer(
    connection: Connection, session: Any, request: dict[str, Any]
) -> tuple[Any, dict[str, Any], list[Any]]:
    """The session, opened by the first request; the answer; and its arrays."""
    if session is None:
        sys.path[:] = request["sys_path"]
        _limit_memory(request["memory"])
        return *_open(request), []
    import numpy as np

    images = np.frombuffer(connection.recv_bytes(), request["type"]).reshape(request["shape"])
    return session, *_run(session, request, images)


def main(connection: Connection) -> None:
    """Answer requests until the other side has ended."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # where the kernel has it: this process is ended first
        Path("/proc/self/oom_score_adj").write_text("1000")
    session: Any = None
    while True:
        request = receive(connection)
        _allow(request["seconds"])
        arrays: list[Any] = []
        try:
            session, answer, arrays = _answer(connection, session, request)
        except Refused as error:
            answer = {"refused": str(error)}
        # onnxruntime's errors have no base class.
        except (Exception, MemoryError) as error:
            answer = {"error": str(error) or type(error).__name__}
            if any(word in answer["error"] for word in ("allocate memory", "bad_alloc", "MemoryError")):
                limit = resource.getrlimit(resource.RLIMIT_DATA)[0] / 2**30
                answer = {"error": f"it takes more than the {limit:.1f} GiB of memory that it may have"}
        _allow(0)
        send(connection, answer, arrays)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):  # the other side has ended
        main(Connection(int(sys.argv[1])))
