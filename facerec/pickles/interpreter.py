"""Interpreter of pickles that runs nothing in them: names and calls become inert stand-ins.

A pickle is a program for a stack machine. Python's machine imports what the program names, calls it, sets
attributes on it, and hashes its keys; guarding it means guessing what each of those may do. The loop here
knows the operations that data need, but a name stays a name, a call of a name that the caller did not list
makes an inert object, and only short keys are hashed. Each byte is read once and each operation makes one
small object, so a bound on the operations bounds time and memory.
"""

from __future__ import annotations

import codecs
import io
import mmap
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError
from facerec.pickles.stand_ins import (
    OPERATIONS,
    Broken,
    Forbidden,
    Global,
    Inert,
    check_nesting,
    key,
    shown,
    text,
)

_DTYPES: Final = frozenset("?bBhHiIlLqQefd")  # dtype.char of booleans, integers and floats
_ARRAY: Final = "numpy.core.multiarray._reconstruct"
_NUMPY: Final = ("numpy.ndarray", "numpy.dtype", _ARRAY)

_BITS: Final = 2048  # of a number
_ARGUMENTS: Final = 16  # of a call: it takes five bytes of a file, and no long time

Builder = Callable[..., Any]


def load(path: Path) -> Any:
    """Read a pickle file of None, bool, int, float, str, bytes, list, tuple and NumPy's arrays and scalars.

    Byte strings of Python 2 and bytearrays become bytes, scalars plain numbers. No container holds itself.

    Raises:
        MissingDataError: there is no such file.
        Forbidden: it asks for any other class or function, or a dict.
        DamagedDataError: it is no pickle, or a cut one.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Reader(data, plain_only=True).run()
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no file {path}") from error
    except Forbidden as error:
        raise Forbidden(f"{path}: {error}") from error
    except OSError as error:
        raise DamagedDataError(f"{path} cannot be read: {error.strerror}") from error
    except (Broken, ValueError) as error:  # a file without a byte cannot be mapped
        raise DamagedDataError(f"{path} is no pickle, or not a whole one: {error}") from error


class Reader:
    """Interprets the pickles in a buffer, one after the other.

    Args:
        data: bytes or a mapped file.
        builders: functions that stand for those of these full names, besides NumPy's arrays and scalars and
            the ways to write bytes. They get arguments of any type and length, and may raise over them.
        stored: stands for an object that is stored elsewhere, by its id.
        plain_only: refuse other names, and dicts, instead of making inert objects of them.
        text: make str of Python 2's byte strings where they are ASCII.

    Attributes:
        file: the buffer, at the next pickle.
        inert: names of unknown functions that were called, in the order of their first call.
    """

    def __init__(
        self,
        data: bytes | mmap.mmap,
        builders: Mapping[str, Builder] | None = None,
        *,
        stored: Builder | None = None,
        plain_only: bool = False,
        text: bool = False,
    ) -> None:
        self.inert: dict[str, None] = {}
        self.file: Any = io.BytesIO(data) if isinstance(data, bytes) else data
        self._stored, self._plain_only, self._in_text = stored, plain_only, text
        self._budget = len(data)
        self._builders: dict[str, Builder] = {
            "_codecs.encode": self._encode,
            "builtins.bytearray": lambda content=b"", *encoding: (
                content if type(content) is bytes else self._encode(content, *encoding)
            ),
            "numpy.core.multiarray.scalar": lambda dtype, data: self._array(data, dtype, (), "C").item(),
            "numpy.core.numeric._frombuffer": self._array,
            **(builders or {}),
        }

    def run(self) -> Any:
        """Return the value of the next pickle in the buffer; raises `Broken` or `Forbidden`."""
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        begin = self.file.tell()
        try:
            for _ in range(OPERATIONS):
                begin = self.file.tell()
                name, read = _OPERATIONS.get(self.file.read(1), ("", None))
                if name == "STOP":
                    break
                self._do(name, None if read is None else read(self.file))
            else:
                raise Broken(f"it has more than {OPERATIONS:,} operations")
            value = self._stack[-1]
        except (IndexError, KeyError) as error:
            raise Broken(f"the operation at byte {begin:,} lacks its operands") from error
        # Of values of the wrong type or range, whose texts may show what the file holds.
        except (TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, RuntimeError) as error:
            raise Broken(f"the operation at byte {begin:,} fails ({type(error).__name__})") from error
        check_nesting(value)
        return value

    def _do(self, name: str, argument: Any) -> None:
        """Do the operation that pickletools calls `name`."""
        stack = self._stack
        match name:
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _NUMBERS:
                if type(argument) is int and argument.bit_length() > _BITS:
                    raise Broken(f"it holds a number of {argument.bit_length():,} bits")
                stack.append(argument)
            case _ if name.endswith("UNICODE") or name == "BINUNICODE8":
                stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(bytes(argument))
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(self._byte_string(argument.encode("latin-1")))
            case "STRING":
                stack.append(self._byte_string(argument))
            case "EMPTY_LIST":
                stack.append([])
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self._recall(argument)
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(items[::-1]))
            case "TUPLE":
                items = self._since_mark()
                self._stack.append(tuple(items))
            case "LIST":
                items = self._since_mark()
                self._stack.append(items)
            case "DICT" | "EMPTY_DICT":
                items = self._since_mark() if name == "DICT" else []
                if self._plain_only:
                    raise Forbidden(
                        "the pickle asks for a dict; only bytes, numbers, lists and arrays are read"
                    )
                self._stack.append({})
                self._set(items)
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._since_mark())
            case "SETITEM":
                value = stack.pop()
                self._set([stack.pop(), value])
            case "SETITEMS":
                self._set(self._since_mark())
            case "GLOBAL":
                stack.append(self._named(*map(text, argument)))
            case "STACK_GLOBAL":
                last = text(stack.pop())
                stack.append(self._named(text(stack.pop()), last))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self._called(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack.append(self._with_state(stack.pop(), state))
            case "BINPERSID" if self._stored is not None:
                stack.append(self._stored(stack.pop()))
            case "FRAME":
                pass
            case "PROTO" if argument <= 5:
                pass
            case _:
                raise Broken(f"before byte {self.file.tell():,} stands no operation that data need")

    def _recall(self, number: int) -> None:
        value = self._memo[number]
        made = type(value) is Inert and value.name == _ARRAY and value.state is not None
        self._stack.append(value.state if made else value)

    def _byte_string(self, raw: bytes) -> str | bytes:
        try:
            return raw.decode("ascii") if self._in_text else raw
        except UnicodeDecodeError:  # the bytes of a NumPy number
            return raw

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target += items
        elif type(target) is not Inert:
            raise Broken("it appends to what is no list")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is dict:
            for name, value in zip(items[0::2], items[1::2], strict=True):
                target[key(name)] = value
        elif type(target) is not Inert:
            raise Broken("it sets items of what is no dict")

    def _named(self, module: str, name: str) -> Global:
        home = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        full = f"{home}.{name}"
        if self._plain_only and full not in self._builders and full not in _NUMPY:
            raise Forbidden(
                f"the pickle asks for {shown(f'{module}.{name}')}; only bytes, numbers, lists and arrays are "
                "read, as anything else could run a program. Get the file from a source you trust"
            )
        return Global(full)

    def _called(self, callee: Any, arguments: Any) -> Any:
        if type(callee) not in (Global, Inert) or type(arguments) is not tuple:
            raise Broken("it calls what is no function")
        if type(callee) is Global and callee.name in self._builders:
            if len(arguments) > _ARGUMENTS:
                raise Broken(f"it calls something with {len(arguments):,} arguments")
            return self._builders[callee.name](*arguments)
        if callee.name not in _NUMPY:
            self.inert.setdefault(callee.name)
        return Inert(callee.name, arguments)

    def _with_state(self, target: Any, state: Any) -> Any:
        if type(target) is dict:  # an OrderedDict may have attributes, which are left out
            return target
        if type(target) is not Inert:
            raise Broken("it sets attributes of what has none")
        target.state = state
        if target.name == _ARRAY:
            _, shape, dtype, fortran, data = state
            target.state = self._array(data, dtype, shape, "F" if fortran else "C")
            return target.state
        return target

    def _spend(self, amount: int) -> None:
        """Bound copies by the size of the pickle: a text encoded again and again would fill the memory."""
        self._budget -= amount
        if self._budget < 0:
            raise Broken("it asks for more than it holds")

    def _encode(self, content: Any, encoding: Any = "latin1") -> bytes:
        """Stand for `_codecs.encode`, by which Python 3 writes bytes under the protocols of Python 2."""
        if type(content) is not str or text(encoding) not in ("latin1", "latin-1"):
            raise Forbidden("the pickle asks for _codecs.encode to something else; only latin1 is read")
        self._spend(len(content))
        return content.encode("latin1")

    def _array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """An array of numbers over the bytes `data`, or of the objects in the list `data`."""
        real = _real(dtype)
        layout: Literal["C", "F"] = "F" if text(order) == "F" else "C"
        if not real.hasobject:
            content = self._encode(data) if type(data) is str else data  # text: bytes of Python 2
            return np.frombuffer(content, real).reshape(shape, order=layout)
        if type(data) is not list:
            raise Broken("an array of objects without objects")
        self._spend(len(data))
        objects = np.empty(len(data), object)
        for i, value in enumerate(data):  # by assignment: np.array would look into the objects
            objects[i] = value
        return objects.reshape(shape, order=layout)


def _real(dtype: Any) -> np.dtype[Any]:
    """The NumPy type that an inert ``numpy.dtype`` stands for: numbers or (references to) objects."""
    if type(dtype) is not Inert or dtype.name != "numpy.dtype":
        raise Broken("an array without a type")
    code = text(dtype.arguments[0])
    if code.lstrip("|<>=") in ("O", "O8", "O4"):
        return np.dtype(object)
    real = np.dtype(code) if len(code) <= 4 else np.dtype("V1")
    if real.char not in _DTYPES:
        raise Broken(f"it holds an array of {shown(code)}; only numbers are read")
    order = "=" if dtype.state is None else text(dtype.state[1])
    return real.newbyteorder(order) if order in ("<", ">") else real  # type: ignore[arg-type]


def _line(file: Any) -> bytes:
    line: bytes = file.readline()
    if line[-1:] != b"\n":
        raise ValueError
    return line[:-1]


def _quoted(file: Any) -> bytes:
    """The argument of STRING: a line in quotes, with escapes."""
    line = _line(file)
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError
    return codecs.escape_decode(line[1:-1])[0]


_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS: Final = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
# pickletools would take what these say for ASCII.
_READERS: Final[Mapping[str, Any]] = {"STRING": _quoted, "GLOBAL": lambda file: (_line(file), _line(file))}
_OPERATIONS: Final[Mapping[bytes, tuple[str, Any]]] = {
    one.code.encode("latin-1"): (one.name, _READERS.get(one.name, one.arg.reader if one.arg else None))
    for one in pickletools.opcodes
}
