"""Decoding: straight into a buffer, at other sizes, damage told from other formats; see `test_images`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.device import release_memory
from facerec.errors import DamagedDataError
from facerec.images.decode import decode, decode_into
from facerec.packs.pack import open_pack
from tests.test_images import as_pillow_sees, file_of, photograph


def test_lfw_images_have_the_pixels_of_pil(lfw_root: Path) -> None:
    pack = open_pack(lfw_root)
    for i in range(0, 400, 8):
        assert np.array_equal(decode(pack.encoded(i)), as_pillow_sees(bytes(pack.encoded(i))))


def test_jpeg_goes_straight_into_a_slot_of_a_batch_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("facerec.images.decode._open")  # the general way, which a plain JPEG does not need
    encoded = file_of(photograph(112, 112), "JPEG")
    batch_BHWC = np.full((3, 112, 112, 3), 9, np.uint8)
    decode_into(memoryview(encoded), batch_BHWC[1])
    assert np.array_equal(batch_BHWC[1], as_pillow_sees(encoded))
    assert (batch_BHWC[[0, 2]] == 9).all()


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 112 * 112).reshape(112, 112).astype(np.uint16)
    decoded = decode(file_of(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(decoded[..., 0], np.rint(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(224, 448), (448, 224), (56, 80), (113, 112), (11, 1000)])
def test_other_sizes_are_resized_by_the_short_side_and_cropped_at_the_centre(
    format: str, height: int, width: int
) -> None:
    encoded = file_of(photograph(height, width), format)
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    image = Image.fromarray(as_pillow_sees(encoded))
    expected = image.resize((112, 112), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(decode(encoded), np.asarray(expected))


def test_a_narrower_crop_keeps_the_middle_columns_unchanged() -> None:
    image = photograph(112, 112)
    decoded = decode(file_of(image, "PNG"), size=(112, 96))
    assert np.array_equal(decoded, np.asarray(image)[:, 8:104])


def test_stray_bytes_before_the_end_of_an_image_do_no_harm() -> None:
    encoded = file_of(photograph(112, 112), "JPEG")
    assert np.array_equal(decode(encoded[:-2] + b"\x01\x02\x03" + encoded[-2:]), as_pillow_sees(encoded))


def test_a_jpeg_whose_data_ends_in_the_middle_is_damaged() -> None:
    encoded = file_of(photograph(112, 112), "JPEG")
    middle = len(encoded) * 3 // 4
    with pytest.raises(DamagedDataError, match="premature end"):
        decode(encoded[:middle] + b"\xff\xd9" + encoded[middle:])


def test_what_is_no_image_is_named_by_its_first_bytes() -> None:
    with pytest.raises(DamagedDataError, match=r"no image of a known format \(18 bytes beginning 3c 21 44"):
        decode(b"<!DOCTYPE html>404")


def test_postscript_is_never_handed_to_a_program() -> None:
    with pytest.raises(DamagedDataError, match="no image of a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 112 112\n%%EndComments\nquit\n")


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
