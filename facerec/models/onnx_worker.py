"""Program that runs one ONNX network for `facerec.models.networks`, within limits of time and memory.

It is started as a script and imports the standard library, NumPy and onnxruntime alone. Requests come on
stdin, answers go to stdout: a length of 8 bytes, so much JSON, then the arrays that the JSON announces. The
first request names the network, each further one brings a batch of images. Whatever a graph makes
onnxruntime do, the kernel ends this process when a request has taken its time (SIGALRM), and refuses it
memory beyond the limit.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

# Fields of ONNX's messages that lead to tensors, by field number (onnx.proto).
_FIELDS: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_MOST_NUMBERS: Final = 1 << 16  # of an output, per image: more is no embedding


class Refused(Exception):
    """The network may not be used; the text says why."""


def send(file: IO[bytes], message: dict[str, Any], arrays: Iterable[Any] = ()) -> None:
    """Write a message and the bytes of arrays."""
    text = json.dumps(message).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        file.write(memoryview(array).cast("B"))
    file.flush()


def receive(file: IO[bytes]) -> dict[str, Any]:
    """Read a message; the bytes of its arrays come next, for `fill`.

    Raises:
        EOFError: the other side has ended.
    """
    message: dict[str, Any] = json.loads(fill(file, int.from_bytes(fill(file, 8), "little")))
    return message


def fill(file: IO[bytes], count: int) -> bytearray:
    """Read `count` bytes; raises `EOFError` where fewer come."""
    content = bytearray(count)
    view = memoryview(content)
    while view:
        got = file.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        view = view[got:]
    return content


def external_files(path: Path) -> list[Path]:
    """The files besides `path` that hold its tensors.

    Raises:
        Refused: one lies outside the folder of `path`, or is no regular file.
    """
    folders = {path.absolute().parent.resolve(), path.resolve().parent}  # the second: a cache of links
    found = []
    for location in sorted(set(_locations(path))):
        name = location.decode("utf-8", "surrogateescape")
        file = Path(os.path.realpath(path.absolute().parent / name.replace("\0", "")))
        if not any(file.is_relative_to(folder) for folder in folders):
            raise Refused(f"names {name[:200]!r} for its numbers, a file outside of its folder")
        if not file.is_file():
            raise Refused(f"names {name[:200]!r} for its numbers, and there is no such file in its folder")
        found.append(file)
    return found


def _locations(path: Path) -> Iterator[bytes]:
    """Values of ``location`` among the external data of all tensors."""
    if not path.stat().st_size:
        raise Refused("is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        waiting = [("model", 0, len(content))]
        while waiting:
            kind, start, stop = waiting.pop()
            entry: dict[int, bytes] = {}
            for number, at, end in _fields(content, start, stop):
                if kind == "entry" and number in (1, 2):
                    entry[number] = content[at:end]
                elif number in _FIELDS[kind]:
                    waiting.append((_FIELDS[kind][number], at, end))
            if entry.get(1) == b"location":
                yield entry.get(2, b"")


def _fields(content: mmap.mmap, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message that has a length."""
    while at < stop:
        tag, at = _varint(content, at, stop)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(content, at, stop)
        elif kind == 2:
            size, at = _varint(content, at, stop)
            if size > stop - at:
                raise Refused("is damaged: a field is longer than what it is in")
            yield tag >> 3, at, at + size
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind not in (3, 4):  # both ends of a group, whose fields are read as if it were not there
            raise Refused("is damaged, or no ONNX")


def _varint(content: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= stop:
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at
    raise Refused("is damaged, or no ONNX")


def _open(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The session of onnxruntime, and what there is to say of the network."""
    path = Path(request["path"])
    files = external_files(path)
    size = sum(file.stat().st_size for file in (path, *files))
    _limit_memory(request["memory"] + 4 * size)
    _allow(request["seconds"] * (1 + size / 2**30))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others decode meanwhile
    options.log_severity_level = 4
    cuda = request["cuda"]
    usable = cuda is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    first = [("CUDAExecutionProvider", {"device_id": cuda})] if usable else []
    session = onnxruntime.InferenceSession(str(path), options, providers=[*first, "CPUExecutionProvider"])
    return session, {
        "metadata": session.get_modelmeta().custom_metadata_map,
        "inputs": [[one.name, one.type, one.shape] for one in session.get_inputs()],
        "outputs": [one.name for one in session.get_outputs()],
        "files": [str(file) for file in files],
        "cuda": "CUDAExecutionProvider" in session.get_providers(),
    }


def _run(session: Any, request: dict[str, Any], images: Any) -> tuple[dict[str, Any], list[Any]]:
    """Outputs as float32; of those that are no numbers, or too many to be embeddings, the shape alone."""
    import numpy as np

    results = session.run(request["outputs"], {request["input"]: images})
    said: list[Any] = []
    arrays = []
    for one in results:
        good = isinstance(one, np.ndarray) and one.dtype.kind == "f"
        good = good and one.size <= _MOST_NUMBERS * len(images)
        said.append([list(one.shape) if isinstance(one, np.ndarray) else [], good])
        if good:
            arrays.append(np.ascontiguousarray(one, np.float32))
    return {"outputs": said}, arrays


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # an administrator's limit that is lower already
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _allow(seconds: float) -> None:
    """Let the kernel end this process in `seconds`; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Answer requests until stdin ends."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # where the kernel has it: this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    session: Any = None
    while True:
        try:
            request = receive(source)
        except EOFError:
            return
        _allow(request["seconds"])
        arrays: list[Any] = []
        try:
            if session is None:
                sys.path[:] = request["sys_path"]
                _limit_memory(request["memory"])
                session, said = _open(request)
            else:
                import numpy as np

                content = fill(source, math.prod(request["shape"]) * np.dtype(request["type"]).itemsize)
                images = np.frombuffer(content, request["type"]).reshape(request["shape"])
                said, arrays = _run(session, request, images)
        except Refused as error:
            said = {"refused": str(error)}
        # What onnxruntime raises has no base class; whoever asked says it.
        except (Exception, MemoryError) as error:
            said = {"error": str(error) or type(error).__name__}
            if any(word in said["error"] for word in ("allocate memory", "bad_alloc", "MemoryError")):
                limit = resource.getrlimit(resource.RLIMIT_DATA)[0] / 2**30
                said = {"error": f"it takes more than the {limit:.1f} GiB of memory that it may have"}
        _allow(0)
        try:
            send(answers, said, arrays)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
