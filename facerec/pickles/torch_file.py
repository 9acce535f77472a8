"""Files of torch.save read as data: tensors, plain values, and inert objects for everything else.

torch's own reader, with ``weights_only=True``, runs no program of the file's either, but it believes the
sizes that a file claims (a tensor, a bytearray or a compressed part of terabytes out of a kilobyte), hashes
tuples that hold themselves twice, 40 deep, checks no CRC, and refuses weights beside a Namespace. Here
`pickles.interpreter` reads, and the claims of tensors are compared with the bytes that are there. A call
copies or visits a few values at most, as it takes five bytes of a file.
"""

from __future__ import annotations

import errno
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import torch
from torch import Tensor

from facerec.pickles.interpreter import Builder, Reader
from facerec.pickles.stand_ins import Broken, Forbidden, Global, Inert, key, numbers, text

# zipfile's errors for damaged archives: its own, and those of cut headers, of names that are no text and of
# unknown compressions.
BROKEN_ARCHIVE: Final = (
    *(zipfile.BadZipFile, struct.error, ValueError, LookupError, ArithmeticError, EOFError, RuntimeError),
    MemoryError,
)
ARCHIVE: Final = b"PK\x03\x04"
_MAGIC: Final = (0x1950A86A20F9469CFC6C, 1001)  # with the version, of files from before torch 1.6
_SHARED: Final = 4  # tensors may share storages, and be so many times larger than the file together
_PIECE: Final = 2**24

DTYPES: Final = {str(one): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
_STORAGES: Final = {
    **{
        f"torch.{name}Storage": dtype
        for name, dtype in (
            *(("Float", torch.float32), ("Double", torch.float64), ("Half", torch.float16)),
            *(("BFloat16", torch.bfloat16), ("Long", torch.int64), ("Int", torch.int32)),
            *(("Short", torch.int16), ("Char", torch.int8), ("Byte", torch.uint8), ("Bool", torch.bool)),
            *(("ComplexFloat", torch.complex64), ("ComplexDouble", torch.complex128)),
        )
    },
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.QInt8Storage": torch.int8,
}


class Content(NamedTuple):
    """Tensors on the CPU, plain values and `Inert` objects, and the names of what the latter stand for."""

    value: Any
    inert: list[str]


class _Storage(NamedTuple):
    dtype: torch.dtype
    content: Tensor  # (n,) of that type


def read(file: BinaryIO | Window, size: int) -> Content:
    """Read a file of `size` bytes that torch.save wrote, now or before torch 1.6.

    Raises:
        Broken: it is no such file, a damaged one (CRC), or one that claims more than it holds.
    """
    if not size:
        raise Broken("it is empty")
    try:
        if file.read(4) == ARCHIVE:
            with zipfile.ZipFile(file) as archive:
                return _Archive(archive, size).read()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_before_zip(data)
    except (zipfile.BadZipFile, Forbidden) as error:
        raise Broken(str(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Broken("a part of it begins before the file") from error
    except BROKEN_ARCHIVE as error:
        raise Broken(type(error).__name__) from error


def archive_names(path: Path) -> frozenset[str]:
    """The names in an archive of torch's, without the folder that holds them all; none if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.partition("/")[2] for name in archive.namelist())
    except BROKEN_ARCHIVE:
        return frozenset()


class Window(io.RawIOBase):
    """A part of a file as a file, from byte `begin` on."""

    def __init__(self, file: BinaryIO, begin: int, length: int) -> None:
        super().__init__()
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._begin + self._at)
        content = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Archive:
    """A ZIP file as torch writes it: ``NAME/data.pkl`` and a part ``NAME/data/KEY`` for each storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._left = self._size = size
        self._parts: dict[str, Tensor] = {}
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise Broken("a ZIP file that torch has not written")
        self._root = pickles[0].removesuffix("data.pkl")

    def read(self) -> Content:
        if f"{self._root}byteorder" in self._archive.namelist():
            order = self._part("byteorder").numpy().tobytes()
            if order != b"little":
                raise Broken("written on a big-endian machine")
        tensors = _Tensors(self._bytes_of, self._size)
        reader = Reader(
            self._part("data.pkl").numpy().tobytes(), tensors.builders, stored=tensors.storage, text=True
        )
        return Content(reader.run(), list(reader.inert))

    def _bytes_of(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        if name not in self._parts:
            self._parts[name] = self._part(f"data/{name}")
        return self._parts[name]

    def _part(self, name: str) -> Tensor:
        """The bytes of a part, (n,) uint8; their CRC is checked."""
        info = self._archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise Broken("its parts are compressed, which torch does not do; unpack it and pack it without")
        self._left -= info.file_size
        if self._left < 0 or info.compress_size != info.file_size:
            raise Broken("its parts are larger than the file")
        if info.CRC == 0:  # never computed (torch.serialization.set_crc32_options)
            del info.CRC  # so that zipfile compares none
        content = torch.empty(info.file_size, dtype=torch.uint8)
        view = memoryview(content.numpy())  # type: ignore[arg-type]
        done = 0
        with self._archive.open(info) as part:
            while count := cast("io.BufferedIOBase", part).readinto(view[done : done + _PIECE]):
                done += count
        if done != info.file_size:
            raise Broken("a part of it is cut")
        return content


def _read_before_zip(data: mmap.mmap) -> Content:
    """A file from before torch 1.6: pickles, then the storages one after the other, each with its length."""
    types: dict[str, tuple[torch.dtype, int]] = {}
    parts: dict[str, Tensor] = {}

    def bytes_of(name: str, dtype: torch.dtype, count: int) -> Tensor | None:
        types.setdefault(name, (dtype, count))
        return parts.get(name)

    tensors = _Tensors(bytes_of, len(data))
    reader = Reader(data, tensors.builders, stored=tensors.storage, text=True)
    if (reader.run(), reader.run()) != _MAGIC:
        raise Broken("not a file of torch.save")
    reader.run()  # the machine it was written on
    object_ = data.tell()
    reader.run()  # the storages come behind the objects made of them: read once for their types, then again
    names = reader.run()
    for name in names if type(names) is list else ():
        dtype, count = types[text(name)]
        if data.read(8) != count.to_bytes(8, "little"):
            raise Broken("a storage of another length than the pickle has")
        size = dtype.itemsize * count
        if size > len(data) - data.tell():
            raise Broken("its storages are cut")
        parts[name] = torch.empty(size, dtype=torch.uint8)
        memoryview(parts[name].numpy())[:] = data.read(size)  # type: ignore[arg-type]
    data.seek(object_)
    return Content(reader.run(), list(reader.inert))


class _Tensors:
    """Builders of tensors for the calls and storages in torch's pickles.

    Args:
        bytes_of: returns the bytes of a storage by name, type and number of elements; None if not known yet.
        size: of the file, in bytes.
    """

    def __init__(self, bytes_of: Callable[[str, torch.dtype, int], Tensor | None], size: int) -> None:
        self._bytes_of = bytes_of
        self._left = _SHARED * size + 2**20
        self.builders: dict[str, Builder] = {
            "collections.OrderedDict": self._dict,
            "collections.Counter": self._dict,
            "collections.defaultdict": lambda _: {},
            "torch.Size": lambda sizes=(): numbers(sizes),
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_type,
            "torch._utils._rebuild_qtensor": self._quantised,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": self._of_subclass,
        }

    def storage(self, identity: Any) -> _Storage | Inert | Global:
        """Stand for the storage with the id ``("storage", type, name, device, elements)``."""
        if type(identity) is tuple and identity[0] == "module":  # a class, with its source
            return Global(text(identity[1].name))
        if type(identity) is not tuple or not 5 <= len(identity) <= 6:
            raise Broken("an object that is stored elsewhere")
        kind, of, name, _, count, *view = identity
        if kind != "storage" or type(of) is not Global:
            raise Broken("an object that is stored elsewhere")
        numbers((count,))
        dtype = _STORAGES.get(of.name)
        if dtype is None or any(view):  # of quantised numbers, or a part of another storage
            return Inert(of.name)
        content = self._bytes_of(text(name), dtype, count)
        if content is None:
            return Inert(of.name)
        if dtype.itemsize * count > len(content):
            raise Broken(f"a storage of {len(content):,} bytes claims {count:,} elements")
        return _Storage(dtype, content[: dtype.itemsize * count].view(dtype))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | Inert:
        if type(storage) is not _Storage:
            return Inert("torch.Tensor")
        (offset,), size, stride = numbers((offset,)), numbers(size), numbers(stride)
        elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if elements and not (elements <= len(storage.content) and last < len(storage.content)):
            raise Broken(f"a tensor of {elements:,} elements in a storage of {len(storage.content):,}")
        self._left -= elements * storage.dtype.itemsize
        if self._left < 0:
            raise Broken(f"its tensors together are more than {_SHARED} times as large as the file")
        return torch.as_strided(storage.content, size, stride, offset if elements else 0)

    def _tensor_of_type(
        self, storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
    ) -> Tensor | Inert:
        real = DTYPES.get(dtype.name) if type(dtype) is Global else None
        if real is None or type(storage) is not _Storage:
            return Inert("torch.Tensor")
        content = storage.content.view(torch.uint8)
        elements = content[: len(content) // real.itemsize * real.itemsize].view(real)
        return self._tensor(_Storage(real, elements), offset, size, stride)

    def _quantised(
        self, storage: Any, offset: Any, size: Any, stride: Any, how: Any, *_: Any
    ) -> Tensor | Inert:
        """The float32 numbers that int8 ones stand for: (q − zero point) · scale, of all or by channel."""
        value = self._tensor(storage, offset, size, stride)
        if isinstance(value, Inert) or type(how) is not tuple or value.dtype != torch.int8 or value.ndim > 4:
            return Inert("torch.Tensor")
        self._left -= 3 * value.numel()  # a byte each is counted
        if self._left < 0:
            raise Broken(f"its tensors together are more than {_SHARED} times as large as the file")
        match how:
            case (Global(name="torch.per_tensor_affine"), float(scale), int(zero)) if abs(zero) < 2**31:
                return (value.float() - zero) * scale
            case (Global(name="torch.per_channel_affine"), Tensor() as scales, Tensor() as zeros, int(axis)):
                if 0 <= axis < value.ndim and scales.shape == zeros.shape == value.shape[axis : axis + 1]:
                    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
                    return (value.float() - zeros.float().view(shape)) * scales.float().view(shape)
        return Inert("torch.Tensor")

    def _of_subclass(self, function: Any, of: Any, arguments: Any, _: Any) -> Any:
        """A tensor with attributes, or of a class of its own: the plain tensor in it."""
        known = type(function) is Global and function.name.startswith("torch._utils._rebuild_")
        if not known or function.name not in self.builders or type(arguments) is not tuple:
            return Inert(of.name)
        return self.builders[function.name](*arguments)

    def _dict(self, items: Any = ()) -> dict[Any, Any]:
        if type(items) not in (dict, list, tuple):
            raise Broken("a dict of what is none")
        self._left -= 64 * len(items)
        if self._left < 0:
            raise Broken("it asks for more than it holds")
        return {key(name): value for name, value in (items.items() if type(items) is dict else items)}
