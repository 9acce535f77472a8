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

_SHARED: Final = 4  # layers may share numbers, and take so many times the size of the file together
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


def parsed(path: Path) -> Any:
    """The network in a file; raises `Refused` for what is none."""
    import onnx
    from google.protobuf.message import DecodeError

    content = path.read_bytes()
    if not content:
        raise Refused("is empty")
    try:
        return onnx.ModelProto.FromString(content)
    except (DecodeError, UnicodeDecodeError) as error:
        raise Refused("is damaged, or no ONNX") from error


def tensors_in(model: Any) -> list[Any]:
    """All tensors, wherever in the network they are."""
    import onnx

    found = []
    try:
        waiting: list[Any] = [model]
        while waiting:
            message = waiting.pop()
            if isinstance(message, onnx.TensorProto):
                found.append(message)
            for field, value in message.ListFields():
                if field.message_type is not None:
                    waiting += [value] if hasattr(value, "ListFields") else value
    except UnicodeDecodeError as error:
        raise Refused("is damaged, or no ONNX") from error
    return found


def _open(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Open the session of onnxruntime; returns it and a description of the network."""
    path = Path(request["path"])
    model = parsed(path)
    tensors = tensors_in(model)
    files = external_files(path, tensors)
    numbers = sum(math.prod(tensor.dims) for tensor in tensors)
    preparation = _preparation(model, path.absolute().parent)
    del model, tensors
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
        "preparation": preparation,
        "outputs": [one.name for one in session.get_outputs()],
        "files": [str(file) for file in files],
        "cuda": "CUDAExecutionProvider" in session.get_providers(),
    }


def _run(session: Any, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], list[Any]]:
    """Run a batch; outputs come as float32, those that cannot be embeddings as their shape alone."""
    import numpy as np

    images = np.frombuffer(content, request["type"]).reshape(request["shape"])
    results = session.run(request["outputs"], {request["input"]: images})
    described, arrays = [], []
    for one in results:
        good = isinstance(one, np.ndarray) and one.dtype.kind == "f"
        good = good and one.size <= _MOST_NUMBERS * len(images)
        described.append([list(one.shape) if isinstance(one, np.ndarray) else [], good])
        if good:
            arrays.append(np.ascontiguousarray(one, np.float32))
    return {"outputs": described}, arrays


class _Constants:
    """The float32 arrays that a graph holds, by name, also behind nodes that rename or turn them."""

    def __init__(self, graph: Any, folder: Path) -> None:
        self.held = {one.name: one for one in graph.initializer}
        self._folder = str(folder)
        self._alias: dict[str, str] = {}
        self._turned: dict[str, Any] = {}

    def raw(self, name: str) -> Any:
        """The array of any type behind a name, or None."""
        import onnx

        tensor = self.held.get(self._alias.get(name, name))
        return None if tensor is None else onnx.numpy_helper.to_array(tensor, self._folder)

    def __call__(self, name: str) -> Any:
        """The float32 array behind a name, or None."""
        if name in self._turned:
            return self._turned[name]
        array = self.raw(name)
        return None if array is None or array.dtype.kind != "f" else array.astype("float32")

    def note(self, node: Any, options: dict[str, Any]) -> bool:
        """Take in the next node of the graph; True if its output is the same numbers as its input."""
        import onnx

        kind, inputs = node.op_type, node.input
        if kind == "Constant" and isinstance(options.get("value"), onnx.TensorProto):
            self.held[node.output[0]] = options["value"]
        elif kind in ("Identity", "Unsqueeze", "Squeeze", "Cast") and inputs:
            self._alias[node.output[0]] = self._alias.get(inputs[0], inputs[0])
            return True
        elif kind == "Transpose" and (array := self(inputs[0])) is not None:
            self._turned[node.output[0]] = array.transpose(options.get("perm"))
        return False


def _options(node: Any) -> dict[str, Any]:
    import onnx

    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _preparation(model: Any, folder: Path) -> dict[str, Any] | None:
    """How a network prepares images before its first layer: (x − mean) / std, ``bgr`` if it turns them round.

    Read off the nodes between the input and the first one that does something else. None: there are none.
    """
    import numpy as np

    graph = model.graph
    constants, readers = _Constants(graph, folder), dict[str, list[Any]]()
    for node in graph.node:
        if node.op_type != "Transpose":  # of large matrices
            constants.note(node, _options(node))
        for name in node.input:
            readers.setdefault(name, []).append(node)
    images = [one for one in graph.input if one.name not in constants.held]
    sides = [one.dim_value for one in images[0].type.tensor_type.shape.dim] if len(images) == 1 else []
    if len(sides) != 4:
        return None
    name, axis = images[0].name, 3 if sides[3] == 3 and sides[1] != 3 else 1  # of the channels
    scale, shift, turned = np.ones(3), np.zeros(3), False

    def column(name: str) -> Any:
        """A number, or one per channel, as float64 (3,); None for anything else."""
        array = constants(name)
        if array is None or array.size not in (1, 3):
            return None
        fits = array.size == 1 or (*[1] * (4 - array.ndim), *array.shape)[axis] == 3
        return np.broadcast_to(array.reshape(-1).astype(np.float64), 3) if fits else None

    while len(readers.get(name, ())) == 1:
        (node,) = readers[name]
        kind, options = node.op_type, _options(node)
        if kind in ("Add", "Sub", "Mul", "Div") and len(node.input) == 2:
            first = node.input[0] == name
            number = column(node.input[1 if first else 0])
            if number is None or (kind == "Div" and not (first and number.all())):
                break
            if kind in ("Mul", "Div"):
                factor = number if kind == "Mul" else 1 / number
                scale, shift = scale * factor, shift * factor
            elif kind == "Sub" and not first:
                scale, shift = -scale, number - shift
            else:
                shift = shift + (number if kind == "Add" else -number)
        elif kind == "Transpose" and sorted(options.get("perm", ())) == [0, 1, 2, 3]:
            axis = options["perm"].index(axis)
        elif _turns_channels(node, options, axis, constants):
            scale, shift, turned = scale[::-1], shift[::-1], not turned
        elif kind not in ("Cast", "Identity"):
            break
        name = node.output[0]
    if not (scale > 0).all() or (not turned and (scale == 1).all() and not shift.any()):
        return None
    mean, std = -shift / scale, 1 / scale
    return {"mean": mean.tolist(), "std": std.tolist(), "channels": "bgr" if turned else "rgb"}


def _turns_channels(node: Any, options: dict[str, Any], axis: int, constants: _Constants) -> bool:
    """True for a node that puts the three channels in reverse order."""
    given = [constants.raw(name) if name else None for name in node.input[1:]]
    values = [None if one is None else one.reshape(-1).tolist() for one in given]
    if node.op_type == "Gather":
        return options.get("axis", 0) in (axis, axis - 4) and values == [[2, 1, 0]]
    if node.op_type != "Slice" or len(values) != 4:
        return False
    starts, ends, axes, steps = values
    whole = starts in ([-1], [2]) and ends is not None and ends[0] < -3
    return whole and axes in ([axis], [axis - 4]) and steps == [-1]


def _layers(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The numbers of its layers in the order of the graph, which is topological, as entries of a state dict.

    Layers are convolutions, products with a matrix, batch norms and PReLUs whose numbers are in the file;
    their entries are called NUMBER.weight, NUMBER.bias and so on, a running variance has torch's eps.
    """
    import numpy as np

    model = parsed(path)
    files = external_files(path, tensors_in(model))  # refuses others than those of its folder
    left = _SHARED * sum(file.stat().st_size for file in (path, *files)) + 2**20
    numbers = _Constants(model.graph, path.absolute().parent)
    layers: list[dict[str, Any]] = []
    made_by: dict[str, dict[str, Any]] = {}

    for node in model.graph.node:
        inputs = list(node.input)
        options = _options(node)
        kind = node.op_type
        if numbers.note(node, options) and inputs[0] in made_by:
            made_by[node.output[0]] = made_by[inputs[0]]
        arrays = [numbers(name) if name else None for name in inputs[1:]]
        weight, bias, *_ = *arrays, None, None
        layer: dict[str, Any] | None = None
        if kind == "Conv" and weight is not None:
            layer = {"weight": weight, "bias": bias}
        elif kind == "Gemm" and weight is not None and not options.get("transA"):
            weight = (weight if options.get("transB") else weight.T) * options.get("alpha", 1.0)
            bias = None if bias is None else bias.reshape(-1) * options.get("beta", 1.0)
            layer = {"weight": weight, "bias": bias}
        elif kind == "MatMul" and weight is not None and weight.ndim == 2:
            layer = made_by[node.output[0]] = {"weight": weight.T, "bias": None}
        elif kind == "Add" and len(inputs) == 2:
            for one, other in (inputs, inputs[::-1]):
                product, bias = made_by.get(one), numbers(other)
                if product is not None and product["bias"] is None and bias is not None:
                    product["bias"] = bias.reshape(-1)
        elif kind == "BatchNormalization" and len(arrays) == 4 and all(one is not None for one in arrays):
            layer = dict(zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True))
            layer["running_var"] = layer["running_var"] + (options.get("epsilon", 1e-5) - 1e-5)
        elif kind == "PRelu" and weight is not None:
            layer = {"weight": weight.reshape(-1)}
        if layer is not None:
            layers.append(layer)
            left -= sum(array.nbytes for array in layer.values() if array is not None)
            if left < 0:
                raise Refused(f"its layers take more than {_SHARED} times the numbers that it holds")
    entries = {
        f"{i}.{role}": array
        for i, layer in enumerate(layers)
        for role, array in layer.items()
        if array is not None
    }
    content = [np.ascontiguousarray(array, np.float32) for array in entries.values()]
    return {"names": [*entries], "outputs": [[list(array.shape), True] for array in content]}, content


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # an administrator's limit that is lower already
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _allow(seconds: float) -> None:
    """Let the kernel end this process in `seconds`; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


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
            if session is None:
                sys.path[:] = request["sys_path"]
                _limit_memory(request["memory"])
                session, answer = _open(request)
            elif "layers" in request:
                answer, arrays = _layers(Path(request["layers"]))
            else:
                answer, arrays = _run(session, request, connection.recv_bytes())
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
