"""Read pickles from the web without running anything: plain values and NumPy arrays of numbers, no more.

A pickle is a program. Here every function it may call is one of this module's own stand-ins, none of which
does more than hold or convert bytes, and all that is stated of sizes is checked against the file before the
program runs, so that no small file can ask for much memory.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError

_NDARRAY: Final = object()  # stands for the class numpy.ndarray, which pickles only ever hand to _reconstruct
_NUMBERS: Final = frozenset("?bBhHiIlLqQefd")  # dtype.char of booleans, integers and floats


class Forbidden(DamagedDataError):
    """A pickle that asks for something it may not have."""


def load(path: Path) -> Any:
    """The value a pickle file holds, built of None, bool, int, float, str, bytes, list, tuple, dict and
    arrays.

    Byte strings of Python 2 come as bytes; arrays (numbers, or objects of the kinds above) and NumPy scalars
    come as NumPy arrays and plain numbers. Items of a list or tuple have to go through `plain`.

    Raises:
        MissingDataError: there is no such file.
        Forbidden: it asks for any other class or function; the message says which.
        DamagedDataError: it is no pickle, or not a whole one.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_claims(data)
            data.seek(0)
            return plain(_Unpickler(data, budget=len(data)).load())
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no file {path}") from error
    except Forbidden as error:
        raise Forbidden(f"{path}: {error}") from error
    except OSError as error:
        raise DamagedDataError(f"{path} cannot be read: {error.strerror}") from error
    # A broken pickle fails in whatever way the broken operation happens to fail, MemoryError included.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DamagedDataError(f"{path} is no pickle, or not a whole one: {reason}") from error


def _check_claims(data: mmap.mmap) -> None:
    """Go through the program without running it: every length must lie within the file, every memo number
    within what has been written so far (the interpreter would allocate a table up to the number claimed)."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", data))):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= cast("int", argument) <= count:
            raise ValueError(f"memo number {argument} after {count} operations")


class _Unpickler(pickle.Unpickler):
    """Builds plain values; every global it finds is a stand-in of this module."""

    def __init__(self, data: mmap.mmap, budget: int) -> None:
        super().__init__(data, encoding="bytes")
        self._budget = budget
        self._known: dict[str, Any] = {
            "_codecs.encode": _Call(self._encode),
            "numpy.ndarray": _NDARRAY,
            "numpy.dtype": _Call(_Dtype),
            "numpy.core.multiarray._reconstruct": _Call(self._reconstruct),
            "numpy.core.multiarray.scalar": _Call(self._scalar),
            "numpy.core.numeric._frombuffer": _Call(self._frombuffer),
        }

    def find_class(self, module: str, name: str) -> Any:
        home = module.replace("numpy._core.", "numpy.core.")
        if f"{home}.{name}" not in self._known:
            raise Forbidden(
                f"the pickle asks for {module}.{name}; only bytes, numbers, lists and arrays are read, "
                "as anything else could run a program. Get the file from a source you trust"
            )
        return self._known[f"{home}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise Forbidden(f"the pickle asks for an object stored elsewhere ({pid!r:.40})")

    def array(self, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise ValueError("an array without type or shape")
        real = dtype.real()
        layout: Literal["C", "F"] = "F" if order == "F" else "C"
        if real.hasobject:
            if not isinstance(data, list):
                raise ValueError("an array of objects without objects")
            self._spend(len(data))
            objects = np.empty(len(data), object)
            for i, value in enumerate(data):  # by assignment: np.array would look into the objects
                objects[i] = plain(value)
            return objects.reshape(shape, order=layout)
        if not isinstance(data, bytes | bytearray):
            raise ValueError("an array of numbers without bytes")
        return np.frombuffer(data, real).reshape(shape, order=layout)

    def _spend(self, amount: int) -> None:
        """What a pickle asks to be made anew may not exceed its own size: the same text encoded over and over
        would fill the memory out of a small file."""
        self._budget -= amount
        if self._budget < 0:
            raise ValueError("it asks for more than it holds")

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """`_codecs.encode`, by which Python 3 writes bytes under the protocols of Python 2."""
        encoding = encoding.decode() if isinstance(encoding, bytes) else encoding
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise Forbidden(f"the pickle asks for _codecs.encode to {encoding!r:.40}; only latin1 is read")
        self._spend(len(text))
        return text.encode("latin1")

    def _reconstruct(self, subtype: Any, shape: Any, code: Any) -> _Array:
        if subtype is not _NDARRAY:
            raise ValueError("only plain arrays are read")
        return _Array(self)

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        return self.array(data, dtype, shape, _text(order))

    def _scalar(self, dtype: Any, data: Any = b"") -> Any:
        return self.array(data, dtype, (1,), "C")[0].item()


class _Call:
    """A function a pickle may call, and do nothing else with: not even set an attribute of it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it asks to change a function")


class _Dtype:
    """Stands for numpy.dtype: the type's code, e.g. ``u1``, and its byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        self.code = _text(code)
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def real(self) -> np.dtype[Any]:
        """The NumPy type it stands for: numbers or (references to) objects, with no fields."""
        if self.code.lstrip("|<>=") in ("O", "O8", "O4"):
            return np.dtype(object)
        dtype = np.dtype(self.code) if len(self.code) <= 4 else np.dtype("V1")
        if dtype.char not in _NUMBERS:
            raise ValueError(f"it holds an array of {self.code!r:.40}; only numbers are read")
        return {"<": dtype.newbyteorder("<"), ">": dtype.newbyteorder(">")}.get(self.order, dtype)


class _Array:
    """Stands for an array until its contents are known."""

    def __init__(self, unpickler: _Unpickler) -> None:
        self._unpickler = unpickler
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = self._unpickler.array(data, dtype, shape, "F" if fortran else "C")


def plain(value: Any) -> Any:
    """`value`, or the array it stands for: for the items of the lists and tuples that `load` returns."""
    if isinstance(value, _Array):
        if value.value is None:
            raise DamagedDataError("an array of the pickle has no contents")
        return value.value
    return value


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise ValueError(f"text was expected, not {type(value).__name__}")
    return value
