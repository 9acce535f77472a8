"""The orientation in which a camera stored an image, by its metadata, and putting it upright."""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_ORIENTATION: Final = 0x0112
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def upright(pixels_HWC: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """A view of the pixels as they are meant to be seen."""
    if orientation > 4:  # 5: mirrored at the diagonal; the others as 1 to 4, after that
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


def read_orientation(info: dict[Any, Any]) -> int:
    """The orientation, 1 … 8, by the EXIF, or else the XMP, among what PIL calls the info of an image.

    PIL's own reading of EXIF copies what all its entries point at, gigabytes out of a small file.
    """
    exif = info.get("exif") or b""
    if not exif and "Raw profile type exif" in info:  # as ImageMagick put it into a PNG: hexadecimal
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
    told = _exif_orientation(exif)
    if told is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        found = _XMP_ORIENTATION.search(xmp.encode(errors="replace") if isinstance(xmp, str) else xmp)
        told = int(found[1]) if found else 1
    return told if 1 <= told <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF data, None where there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, first)
        for at in range(first + 2, first + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == _ORIENTATION:
                return int(struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", exif, at + 8)[0])
    return None
