"""Decoding: the same pixels as PIL, straight into a buffer, and damage told from other formats."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.device import release_memory
from facerec.errors import DamagedDataError
from facerec.images.decode import MAX_PIXELS, decode, decode_full_size, decode_into


def photograph(height: int = 112, width: int = 112) -> Image.Image:
    """A smooth random colour image, which JPEG keeps recognisable."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_pil_sees(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def off_by(pixels: np.ndarray, image: Image.Image) -> float:
    return float(np.abs(pixels.astype(int) - np.asarray(image, dtype=int)).mean())


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_has_the_pixels_of_pil(subsampling: int, progressive: bool) -> None:
    encoded = file_of(photograph(), "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    assert np.array_equal(decode(encoded), as_pil_sees(encoded))


def test_lfw_images_have_the_pixels_of_pil(lfw_root: Path) -> None:
    lines = (lfw_root / "train.idx").read_text().splitlines()[1:401:8]
    offsets = [int(line.split("\t")[1]) for line in lines]
    with (lfw_root / "train.rec").open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            _, length = struct.unpack("<II", file.read(8))
            encoded = file.read(length & 0x1FFFFFFF)[24:]
            assert np.array_equal(decode(encoded), as_pil_sees(encoded))


def test_jpeg_goes_straight_into_a_slot_of_a_batch_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("facerec.images.decode._open")  # the general way, which a plain JPEG does not need
    encoded = file_of(photograph(), "JPEG")
    batch_BHWC = np.full((3, 112, 112, 3), 9, np.uint8)
    decode_into(memoryview(encoded), batch_BHWC[1])
    assert np.array_equal(batch_BHWC[1], as_pil_sees(encoded))
    assert (batch_BHWC[[0, 2]] == 9).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "PPM"])
def test_lossless_formats_come_back_exactly(format: str) -> None:
    image = photograph()
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(decode(file_of(image, format, **options)), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_gray_is_repeated_in_three_channels(format: str) -> None:
    encoded = file_of(photograph().convert("L"), format)
    assert np.array_equal(decode(encoded), as_pil_sees(encoded))


def test_cmyk_jpeg_becomes_rgb_within_one_level_of_pil() -> None:
    image = photograph()
    encoded = file_of(image.convert("CMYK"), "JPEG", quality=95)
    batch_BHWC = np.full((3, 112, 112, 3), 9, np.uint8)
    decode_into(encoded, batch_BHWC[1])
    assert np.abs(batch_BHWC[1].astype(int) - as_pil_sees(encoded)).max() <= 1
    assert (batch_BHWC[[0, 2]] == 9).all()


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 112 * 112).reshape(112, 112).astype(np.uint16)
    decoded = decode(file_of(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(decoded[..., 0], np.rint(ramp / 257).astype(np.uint8))


def test_transparency_is_dropped() -> None:
    image = photograph()
    clear = image.copy()
    clear.putalpha(0)
    assert np.array_equal(decode(file_of(clear, "PNG")), np.asarray(image))
    palette = image.convert("P")
    encoded = file_of(palette, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(decode(encoded), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(224, 448), (448, 224), (56, 80), (113, 112), (11, 1000)])
def test_other_sizes_are_resized_by_the_short_side_and_cropped_at_the_centre(
    format: str, height: int, width: int
) -> None:
    encoded = file_of(photograph(height, width), format)
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    image = Image.fromarray(as_pil_sees(encoded))
    expected = image.resize((112, 112), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(decode(encoded), np.asarray(expected))


def test_a_narrower_crop_keeps_the_middle_columns_unchanged() -> None:
    image = photograph()
    decoded = decode(file_of(image, "PNG"), size=(112, 96))
    assert np.array_equal(decoded, np.asarray(image)[:, 8:104])


def test_a_jpeg_small_enough_for_the_buffer_but_of_another_shape_is_resized() -> None:
    encoded = file_of(photograph(60, 60), "JPEG")
    expected = Image.fromarray(as_pil_sees(encoded)).resize((112, 112), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(encoded), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(112, 112), (120, 150)])
def test_photographs_are_put_upright_by_their_exif_orientation(
    orientation: int, size: tuple[int, int]
) -> None:
    upright = photograph(*size)
    turned_back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if turned_back is None else upright.transpose(turned_back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = file_of(stored, "JPEG", quality=98, exif=exif)
    assert off_by(decode_full_size(encoded), upright) < 2
    assert off_by(decode(encoded), Image.fromarray(decode(file_of(upright, "PNG")))) < 2


def test_bytes_after_the_image_and_stray_bytes_before_its_end_do_no_harm() -> None:
    encoded = file_of(photograph(), "JPEG")
    expected = as_pil_sees(encoded)
    assert np.array_equal(decode(encoded + b"tail"), expected)
    assert np.array_equal(decode(encoded[:-2] + b"\x01\x02\x03" + encoded[-2:]), expected)


def test_a_cut_jpeg_is_damaged() -> None:
    encoded = file_of(photograph(), "JPEG")
    for length in (0, 1, 3, 100, len(encoded) // 2, len(encoded) - 20):
        with pytest.raises(DamagedDataError):
            decode(encoded[:length])


def test_a_jpeg_whose_data_ends_in_the_middle_is_damaged() -> None:
    encoded = file_of(photograph(), "JPEG")
    middle = len(encoded) * 3 // 4
    with pytest.raises(DamagedDataError, match="premature end"):
        decode(encoded[:middle] + b"\xff\xd9" + encoded[middle:])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP"])
def test_other_cut_formats_are_damaged(format: str) -> None:
    encoded = file_of(photograph(), format)
    with pytest.raises(DamagedDataError):
        decode(encoded[: len(encoded) // 2])


def test_what_is_no_image_is_named_by_its_first_bytes() -> None:
    with pytest.raises(DamagedDataError, match=r"no image of a known format \(18 bytes beginning 3c 21 44"):
        decode(b"<!DOCTYPE html>404")


def test_postscript_is_never_handed_to_a_program() -> None:
    with pytest.raises(DamagedDataError, match="no image of a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 112 112\n%%EndComments\nquit\n")


def claiming_jpeg(height: int, width: int) -> bytes:
    encoded = bytearray(file_of(photograph(), "JPEG"))
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(encoded)


def claiming_png(height: int, width: int) -> bytes:
    encoded = bytearray(file_of(photograph(), "PNG"))
    encoded[16:24] = struct.pack(">II", width, height)
    encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    return bytes(encoded)


@pytest.mark.parametrize("claiming", [claiming_jpeg, claiming_png])
@pytest.mark.parametrize("side", [60_000, 10_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_claim_of_gigapixels_is_refused_before_memory_is_asked_for(claiming, side: int) -> None:
    import tracemalloc

    encoded = claiming(side, side)
    tracemalloc.start()
    with pytest.raises(DamagedDataError, match="pixels"):
        decode(encoded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert side * side > MAX_PIXELS
    assert peak < 5_000_000


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux, to say how much memory is held"
)
def test_images_of_another_size_leave_no_memory_behind() -> None:
    """A decoder that is given too small a buffer loses 4 kB each time: 17 MB here."""

    def held() -> float:
        release_memory()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    encoded, out_HWC = file_of(photograph(48, 48), "JPEG"), np.empty((16, 16, 3), np.uint8)
    decode_into(encoded, out_HWC)
    before = held()
    for _ in range(4000):
        decode_into(encoded, out_HWC)
    assert held() - before < 6
