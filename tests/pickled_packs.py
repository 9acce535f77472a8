"""Verification packs as Python 2 and 3, NumPy and OpenCV pickle them, for tests of their reader."""

from __future__ import annotations

import io
import pickle
import struct

import numpy as np
from PIL import Image


def image(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (112, 112), (shade, 255 - shade, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


IMAGES = [image(shade) for shade in (0, 60, 120, 60, 0, 240)]
ISSAME = [True, False, True]


def python2_pickle(images: list[bytes], issame: list[bool]) -> bytes:
    """Return the bytes that Python 2's cPickle writes under protocol 2 for (list of str, list of bool)."""
    out = bytearray(b"\x80\x02]q\x01(")
    for one in images:
        out += b"T" + struct.pack("<i", len(one)) + one  # BINSTRING
    out += b"e]q\x02("
    for answer in issame:
        out += b"\x88" if answer else b"\x89"
    return bytes(out + b"e\x86q\x03.")


def ascii_quoted(content: bytes) -> bytes:
    """A byte string as Python 2's repr gives it."""
    return repr(content)[1:].encode("ascii")


def as_arrays(images: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(one, np.uint8) for one in images]


def objects(values: list) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def old_names(data: bytes) -> bytes:
    """The same pickle (protocol 2) with the module name NumPy had before 2.0."""
    return data.replace(b"numpy._core.", b"numpy.core.")


VARIANTS = {
    "python 2": python2_pickle(IMAGES, ISSAME),
    **{f"protocol {p}": pickle.dumps((IMAGES, ISSAME), p) for p in range(6)},
    "issame array": pickle.dumps((IMAGES, np.array(ISSAME)), 4),
    "issame array, protocol 5": pickle.dumps((IMAGES, np.array(ISSAME)), 5),
    "issame numbers": pickle.dumps((IMAGES, np.array(ISSAME, np.int64)), 2),
    "issame big-endian floats": pickle.dumps((IMAGES, np.array(ISSAME, ">f4")), 3),
    "issame NumPy booleans": pickle.dumps((IMAGES, list(np.array(ISSAME))), 2),
    "images as arrays": pickle.dumps((as_arrays(IMAGES), ISSAME), 2),
    "images as arrays, protocol 5": pickle.dumps((as_arrays(IMAGES), ISSAME), 5),
    "images as arrays, old NumPy": old_names(pickle.dumps((as_arrays(IMAGES), np.array(ISSAME)), 2)),
    "columns, as OpenCV's imencode gives them": pickle.dumps(
        ([one[:, None] for one in as_arrays(IMAGES)], np.array(ISSAME)[:, None]), 2
    ),
    **{
        f"bytearrays, protocol {p}": pickle.dumps(([bytearray(one) for one in IMAGES], ISSAME), p)
        for p in range(6)
    },
    "python 2, protocol 0": b"((l"
    + b"".join(b"S" + ascii_quoted(one) + b"\na" for one in IMAGES)
    + b"(lI01\naI00\naI01\nat.",
    "array of objects": pickle.dumps((objects(IMAGES), objects(ISSAME)), 4),
    "array of arrays": pickle.dumps((objects(as_arrays(IMAGES)), ISSAME), 4),
    "lists": pickle.dumps([tuple(IMAGES), tuple(ISSAME)], 4),
}
