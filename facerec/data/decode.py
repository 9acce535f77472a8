"""Decode pictures to RGB faces of one size: straight into a batch buffer where they are ordinary JPEG.

The decoder was chosen by measurement (5,999 pictures of the LFW pack, one core, pictures a second; 112×112
JPEG quality 92, the accurate DCT; `scripts/benchmark data` repeats it):

    simplejpeg into a given buffer   9,400      cv2              10,000 (BGR, allocates every picture)
    torchvision.io (deprecated)      9,100      PIL               4,800

The first three are the same libjpeg-turbo, and cv2's lead is within what one run differs from the next; only
simplejpeg writes into memory that is already there, so a batch is one buffer and no picture is an object of
its own. It releases the interpreter lock while it decodes, and gives the same pixels as PIL.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from facerec.errors import DamagedDataError

Pixels = npt.NDArray[np.uint8]
Encoded = bytes | bytearray | memoryview

# Only these are tried: some of PIL's other readers start programs (EPS) or are rarely looked after.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF")
# A picture's header may claim any size; more than this is refused before memory is asked for (268 MB as RGB).
MAX_PIXELS: Final = 89_478_485

_EXIF_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What libjpeg may complain of without a pixel being lost; after any other complaint the picture is damaged.
_HARMLESS: Final = ("extraneous bytes", "Adobe color transform", "ICC", "JFIF revision", "sequential JPEG")


def decode(encoded: Encoded, size: int | tuple[int, int] = 112) -> Pixels:
    """Decode one picture of any supported format to RGB.

    Args:
        encoded: a whole file's bytes: JPEG, PNG, WebP, BMP, PPM/PGM or GIF (its first frame).
        size: side of the result, or its (height, width), in pixels. A picture of another size is resized to
            cover it (so by its short side where the result is square) and cropped at the centre; one turned
            by an EXIF orientation is put upright first.

    Returns:
        uint8 array (height, width, 3), RGB; gray is repeated, transparency dropped.

    Raises:
        DamagedDataError: it is no picture, parts of it are missing, or it claims more than `MAX_PIXELS`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    out_HWC = np.empty((height, width, 3), np.uint8)
    decode_into(encoded, out_HWC)
    return out_HWC


def decode_into(encoded: Encoded, out_HWC: Pixels) -> None:
    """`decode` into `out_HWC` (uint8, C-contiguous, (height, width, 3)), whose shape says the wanted size.

    A JPEG of just that size is decoded in place; `out_HWC` holds anything at all after an error.
    """
    view = memoryview(encoded)
    # EXIF stands right behind the start, or behind the 18 bytes of JFIF; such pictures may have to be turned.
    if b"Exif" not in bytes(view[:64]):
        try:
            pixels_HWC = simplejpeg.decode_jpeg(view, "RGB", buffer=out_HWC)
        except ValueError:
            pass  # another format, a larger picture, or damage: the general way tells which
        else:
            if pixels_HWC.shape == out_HWC.shape:
                return
    _fit(_open(bytes(view)), out_HWC)


def fit_into(pixels_HWC: Pixels, out_HWC: Pixels) -> None:
    """Copy decoded RGB pixels into `out_HWC`, resized and cropped as `decode` does where the sizes differ."""
    if pixels_HWC.shape == out_HWC.shape:
        out_HWC[...] = pixels_HWC
    else:
        _fit(Image.fromarray(pixels_HWC), out_HWC)


def _fit(image: Image.Image, out_HWC: Pixels) -> None:
    height, width, _ = out_HWC.shape
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    out_HWC[...] = np.asarray(image)


def decode_whole(encoded: Encoded) -> Pixels:
    """A photograph in its own size, upright: uint8 (height, width, 3), RGB; raises as `decode` does."""
    return np.array(_open(bytes(memoryview(encoded))))


def _open(encoded: bytes) -> Image.Image:
    """The picture as an upright RGB image in its own size."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DamagedDataError(
                f"the picture claims {width}×{height} pixels; more than {MAX_PIXELS:,} are refused"
            )
        turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        upright = _rgb(image, encoded)
        return upright if turn is None else upright.transpose(turn)
    except (DamagedDataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DamagedDataError(f"the picture claims too many pixels: {error}") from error
    # PIL's readers meet damage with whatever exception the broken field happens to cause.
    except Exception as error:
        reason = "no picture of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DamagedDataError(f"the picture does not decode: {reason} ({_beginning(encoded)})") from error


def _rgb(image: Image.Image, encoded: bytes) -> Image.Image:
    """The pixels of an opened picture as RGB."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        # PIL is silent about JPEG data that is cut or garbled in the middle; simplejpeg is not.
        try:
            return Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB"))
        except ValueError as error:
            complaint = str(error)
        if any(words in complaint for words in _HARMLESS):
            return Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB", strict=False))
        if not complaint.startswith("tj"):  # those are layouts only libjpeg's older interface can read
            raise DamagedDataError(f"the JPEG is damaged: {complaint}")
    if image.mode.startswith("I;16"):  # 16 bits of gray, which PIL would clip and not scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # a palette may hold transparent colours, which only RGBA can drop silently
        image = image.convert("RGBA")
    return image.convert("RGB")


def _beginning(encoded: bytes) -> str:
    return f"{len(encoded):,} bytes beginning {encoded[:8].hex(' ')}" if encoded else "0 bytes"
