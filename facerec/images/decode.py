"""Decode images to RGB faces of one size: straight into a batch buffer where they are ordinary JPEG.

Whatever the size wanted and wherever the bytes come from, an image is read here, and in one way: put upright,
16-bit gray scaled to 8 bits, transparency dropped, refused where pixels are missing or are too many.

The decoder was chosen by measurement (images per second, 112×112 JPEG, one core; `scripts/benchmark data`
repeats it): simplejpeg into a given buffer 9,400, cv2 10,000, torchvision.io 9,100, PIL 4,800. The first
three are the same libjpeg-turbo; only simplejpeg writes into memory that is already there, so a batch is one
buffer. It releases the interpreter lock while it decodes, and gives the same pixels as PIL.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from facerec.errors import DamagedDataError, FacerecError, require
from facerec.images.orientation import read_orientation, upright

Pixels = npt.NDArray[np.uint8]
Encoded = bytes | bytearray | memoryview

# Endings of the files that are taken for images where a folder is looked through.
ENDINGS: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Beside JPEG only these are tried: others of PIL's readers start programs (EPS) or are rarely looked after.
_FORMATS: Final = ("PNG", "WEBP", "BMP", "PPM", "GIF")

# A header may claim any size, and a small file may take gigabytes or minutes. The most pixels of a face, and
# those of a photograph to find or cut one in; MAX_PIXELS_SETTING in the environment replaces both.
MAX_PIXELS: Final = 4096 * 4096
MAX_PHOTOGRAPH_PIXELS: Final = 89_478_485
MAX_PIXELS_SETTING: Final = "FACEREC_MAX_PIXELS"
_SCANS: Final = 16  # of a JPEG, that cost what one image of its size does; progressive ones have about ten
_SIDES: Final = 4  # a side may be as many times as long as that of a square of the most pixels
_DIGITS: Final = 1 << 22  # bytes of a PBM, PGM or PPM whose pixels are written as text
_HEADER: Final = 1 << 16  # bytes of the header of a binary one
_BYTES: Final = 4  # a file may have for each pixel of the most pixels

# `_afford` is stricter than PIL, which would warn on standard error of what is then refused.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Parts of a JPEG. Between a scan's header and the next segment stand stuffed bytes and restarts, no segments.
_SOI, _SOS, _SOS_BYTES, _EOI, _EOI_BYTES = b"\xff\xd8", 0xFFDA, b"\xff\xda", 0xFFD9, b"\xff\xd9"
_BASELINE, _PROGRESSIVE, _APP1 = 0xFFC0, 0xFFC2, 0xFFE1
_PLAIN: Final = frozenset({0xFFC4, 0xFFDB, 0xFFDD, 0xFFE0, *range(0xFFE2, 0xFFF0), 0xFFFE})
_SEGMENT: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_segment = struct.Struct(">HH").unpack_from
_MODES: Final = {"Gray": "L", "CMYK": "CMYK", "YCCK": "CMYK"}
# libjpeg warnings that lose no pixels; after any other the image is damaged.
_HARMLESS: Final = ("extraneous bytes", "Adobe color transform", "ICC", "JFIF revision", "sequential JPEG")
_NO_END: Final = "Premature end of JPEG file"


class Header(NamedTuple):
    """Format and mode by PIL's names, height and width of the upright image, EXIF's orientation (1 … 8)."""

    format: str
    mode: str
    height: int
    width: int
    orientation: int


def decode(encoded: Encoded, size: int | tuple[int, int] = 112, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode one image of any supported format to RGB.

    Args:
        encoded: the bytes of a file: JPEG, PNG, WebP, BMP, PPM/PGM/PBM or GIF (its first frame).
        size: side of the result, or its (height, width), in pixels. An image of another size is resized to
            cover it (so by its short side where the result is square) and cropped at the centre; one turned
            by an EXIF orientation is put upright first.
        max_pixels: more are refused, unless `MAX_PIXELS_SETTING` says otherwise.

    Returns:
        uint8 array (height, width, 3), RGB; gray is repeated, transparency dropped.

    Raises:
        DamagedDataError: it is no image, parts of it are missing, or it costs more than `max_pixels`.
        ConfigError: `MAX_PIXELS_SETTING` is no number.
    """
    height, width = (size, size) if isinstance(size, int) else size
    out_HWC = np.empty((height, width, 3), np.uint8)
    decode_into(encoded, out_HWC, max_pixels)
    return out_HWC


def decode_into(encoded: Encoded, out_HWC: Pixels, max_pixels: int = MAX_PIXELS) -> None:
    """`decode` into `out_HWC` (uint8, C-contiguous, (height, width, 3)), whose shape says the wanted size.

    A JPEG of just that size is decoded in place; `out_HWC` holds anything at all after an error.
    """
    view = memoryview(encoded)
    # Into a buffer that is too small simplejpeg 1.9 refuses to decode, and loses 4 kB each time.
    if ordinary_size(view) == out_HWC.shape[:2]:
        with contextlib.suppress(ValueError):  # damage, which the general way names
            simplejpeg.decode_jpeg(view, "RGB", buffer=out_HWC)
            return
    fit_into(_open(bytes(view), max_pixels), out_HWC)


def fit_into(pixels_HWC: Pixels, out_HWC: Pixels) -> None:
    """Copy decoded RGB pixels into `out_HWC`, resized and cropped as `decode` does where the sizes differ."""
    if pixels_HWC.shape != out_HWC.shape:
        height, width, _ = out_HWC.shape
        image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
        pixels_HWC = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
    out_HWC[...] = pixels_HWC


def decode_full_size(encoded: Encoded) -> Pixels:
    """A photograph in its own size, upright: uint8 (height, width, 3), RGB; raises as `decode` does."""
    return np.ascontiguousarray(_open(bytes(memoryview(encoded)), MAX_PHOTOGRAPH_PIXELS))


def read_header(encoded: Encoded) -> Header:
    """Read the header of an image, and of a JPEG no more; raises as `decode` does."""
    encoded = bytes(memoryview(encoded))
    with _named_damage(encoded):
        if encoded.startswith(_SOI):
            height, width, colors = _jpeg_header(encoded)
            kind, mode, orientation = "JPEG", _MODES.get(colors, "RGB"), _jpeg_orientation(encoded)
        else:
            image = _pil(encoded, MAX_PHOTOGRAPH_PIXELS)
            kind, mode, (width, height) = str(image.format), image.mode, image.size
            image.load()  # the orientation of a PNG may stand behind its pixels
            orientation = read_orientation(image.info)
    if orientation > 4:
        height, width = width, height
    return Header(kind, mode, height, width, orientation)


def ppm(pixels_HWC: Pixels) -> bytes:
    """RGB pixels as a PPM file: an encoded image for little more than a copy."""
    height, width, _ = pixels_HWC.shape
    return b"P6 %d %d 255\n" % (width, height) + pixels_HWC.tobytes()


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels of an image that PIL has opened, upright: uint8 (height, width, 3), RGB.

    Raises:
        DamagedDataError: it does not decode.
    """
    try:
        return upright(_rgb(image), read_orientation(image.info))
    except (OSError, ValueError, SyntaxError) as error:
        raise DamagedDataError(f"the image does not decode: {error}") from error


def read_file(path: Path) -> bytes:
    """Read the file of an image.

    Raises:
        OSError, ValueError: it cannot be read.
        DamagedDataError: it is no regular file (a pipe never ends), or larger than any image that is decoded.
    """
    about = path.stat()
    most = _BYTES * _limit(MAX_PHOTOGRAPH_PIXELS)
    if not stat.S_ISREG(about.st_mode):
        raise DamagedDataError("is no file")
    if about.st_size > most:
        raise DamagedDataError(
            f"the file has {about.st_size:,} bytes, more than the {most:,} that are read of an image; "
            f"{MAX_PIXELS_SETTING}={-(-about.st_size // _BYTES)} in the environment reads it"
        )
    return path.read_bytes()


def ordinary_size(view: memoryview) -> tuple[int, int] | None:
    """(height, width) of a JPEG that no metadata may turn, with no more than `_SCANS` scans; else None."""
    at = 2
    size = None
    components = 0  # in the first scan, if it is to be the only one
    if view[:2] != _SOI:
        return None
    try:
        while True:
            marker, length = _segment(view, at)
            if marker not in _PLAIN:
                if marker == _SOS:
                    few = view[at + 4] == components or bytes(view).count(_SOS_BYTES) <= _SCANS
                    return size if few else None
                if marker not in (_BASELINE, _PROGRESSIVE):
                    return None
                size = _segment(view, at + 5)
                components = view[at + 9] if marker == _BASELINE else 0
            at += 2 + length
    except (struct.error, IndexError):
        return None


def _limit(default: int) -> int:
    """The most pixels: what the environment says, else the default."""
    given = os.environ.get(MAX_PIXELS_SETTING, "")
    if not given:
        return default
    require(given.isdecimal() and int(given) > 0, MAX_PIXELS_SETTING, given, "must be a number of pixels")
    if Image.MAX_IMAGE_PIXELS is not None:  # PIL refuses twice as many itself
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(given))
    return int(given)


def _afford(width: int, height: int, max_pixels: int, scans: int = 1) -> None:
    """Raise `DamagedDataError` for an image that costs too much memory or time."""
    limit = _limit(max_pixels)
    cost = max(width * height * -(-scans // _SCANS), (max(width, height) // _SIDES) ** 2)
    if cost > limit:
        many = f" in {scans:,} scans" if scans > _SCANS else ""
        raise DamagedDataError(
            f"the image claims {width}×{height} pixels{many}, which count as {cost:,}: more than the limit "
            f"of {limit:,}; {MAX_PIXELS_SETTING}={cost} in the environment reads it"
        )


@contextlib.contextmanager
def _named_damage(encoded: bytes) -> Iterator[None]:
    """Turn anything that a decoder raises into a `DamagedDataError`."""
    try:
        yield
    except (FacerecError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DamagedDataError(
            f"the image claims too many pixels: {error}; {MAX_PIXELS_SETTING} in the environment raises it"
        ) from error
    # PIL's readers meet damage with whatever exception the broken field happens to cause.
    except Exception as error:
        begin = f"{len(encoded):,} bytes beginning {encoded[:8].hex(' ')}" if encoded else "0 bytes"
        reason = f"{error} ({begin})"
        if isinstance(error, Image.UnidentifiedImageError):
            known = ", ".join(("JPEG", *_FORMATS))
            reason = f"no image of a known format ({begin}); known are {known}"
        raise DamagedDataError(f"the image does not decode: {reason}") from error


def _open(encoded: bytes, max_pixels: int) -> Pixels:
    """The pixels of an image in its own size, (height, width, 3), RGB; perhaps not contiguous."""
    with _named_damage(encoded):
        if encoded.startswith(_SOI):
            pixels_HWC, orientation = _jpeg(encoded, max_pixels), _jpeg_orientation(encoded)
        else:
            image = _pil(encoded, max_pixels)
            pixels_HWC, orientation = _rgb(image), read_orientation(image.info)
        return upright(pixels_HWC, orientation)


# Formats that PIL reads -----------------------------------------------------------------------------------


def _pil(encoded: bytes, max_pixels: int) -> Image.Image:
    """An image of which only the header is read yet."""
    _limit(max_pixels)  # PIL has a limit too, which this raises
    if encoded.startswith(b"P"):
        encoded = _netpbm(encoded)
    image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    _afford(*image.size, max_pixels)
    return image


def _netpbm(encoded: bytes) -> bytes:
    """A PBM, PGM or PPM without what keeps PIL busy for minutes: millions of digits, and of comments."""
    if encoded[:2] not in (b"P1", b"P2", b"P3"):
        Image.open(io.BytesIO(encoded[:_HEADER]), formats=_FORMATS)  # raises where it goes on
        return encoded
    if len(encoded) > _DIGITS:
        raise DamagedDataError(
            f"the image is written in {len(encoded):,} bytes of text ({encoded[:2].decode()}), more than the "
            f"{_DIGITS:,} that are read; save it in the binary form, P{encoded[1] - ord('0') + 3}"
        )
    return re.sub(rb"#[^\r\n]*[\r\n]", b"", encoded)


def _rgb(image: Image.Image) -> Pixels:
    """The pixels of an opened image, (height, width, 3)."""
    if image.mode.startswith("I"):  # 16 bits of gray, which PIL would clip and not scale
        gray_HW = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(gray_HW[..., None], 3, axis=2)
    if image.mode == "F":
        raise DamagedDataError("its pixels are floating-point numbers of unknown range; save it with 8 bits")
    if image.mode == "P":  # a palette may hold transparent colours, which only RGBA can drop silently
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


# JPEG -----------------------------------------------------------------------------------------------------


def _jpeg(encoded: bytes, max_pixels: int) -> Pixels:
    """The pixels of a JPEG as it is stored, (height, width, 3)."""
    height, width, _ = _jpeg_header(encoded)
    scans = encoded.count(_SOS_BYTES)  # or fewer: that of a thumbnail may stand among the metadata
    if scans > _SCANS:
        scans = sum(marker == _SOS for marker, _ in _segments(encoded))
    _afford(width, height, max_pixels, scans)
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB")  # PIL is silent about data cut or garbled in the middle
    except ValueError as error:
        complaint = str(error)
    if _NO_END in complaint and _holds_all(encoded):
        with contextlib.suppress(ValueError):  # not only the end is missing
            return simplejpeg.decode_jpeg(encoded + _EOI_BYTES, "RGB")
    # libjpeg reports its first warning only; that of a cut file would come last.
    elif any(words in complaint for words in _HARMLESS) and _EOI in (
        marker for marker, _ in _segments(encoded)
    ):
        return simplejpeg.decode_jpeg(encoded, "RGB", strict=False)
    raise DamagedDataError(f"the JPEG is damaged: {complaint}")


def _jpeg_header(encoded: bytes) -> tuple[int, int, str]:
    """Height, width and the name of the colours, as libjpeg reads them."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
    except KeyError:  # simplejpeg has no name for the colours of an image that libjpeg did not find
        raise DamagedDataError("the JPEG is damaged: it ends before its pixels") from None
    return height, width, colors


def _segments(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG, up to its end marker."""
    at = 2
    while found := _SEGMENT.search(encoded, at):
        marker = int.from_bytes(found[0])
        length = int.from_bytes(encoded[found.end() : found.end() + 2])
        yield marker, encoded[found.end() + 2 : found.end() + length]
        if marker == _EOI:
            return
        at = found.end() + max(length, 2)


def _jpeg_orientation(encoded: bytes) -> int:
    """The orientation by a JPEG's metadata, anywhere among its other segments."""
    info: dict[Any, Any] = {}
    for marker, content in _segments(encoded):
        if marker == _SOS:
            break
        if marker == _APP1 and content.startswith(b"Exif\0\0"):
            info.setdefault("exif", content)
        elif marker == _APP1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            info["xmp"] = content
    return read_orientation(info)


def _holds_all(encoded: bytes) -> bool:
    """True where the scans of a JPEG without end hold every bit of every coefficient of each component."""
    missing: dict[int, list[int]] = {}
    for marker, content in _segments(encoded):
        if _BASELINE <= marker <= _PROGRESSIVE:
            missing = dict.fromkeys(content[6::3], [1] * 64)
        elif marker == _SOS and len(content) == 4 + 2 * content[0]:
            first, last, bits = content[-3:]
            for component in content[1:-3:2]:
                lowest = missing.get(component, [1] * 64)
                missing[component] = lowest[:first] + [bits & 15] * (last - first + 1) + lowest[last + 1 :]
    return bool(missing) and not any(map(any, missing.values()))
