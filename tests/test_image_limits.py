"""Images that hurt: what would take much memory or time is refused in a line, before it is spent."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.errors import ConfigError, DamagedDataError
from facerec.images.decode import decode, read_file
from facerec.images.device_decode import for_device
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from tests.making import data, little
from tests.test_images import SIDE, app1, chunk, file_of, photograph, with_segments


def empty_png(width: int, height: int, bits: int = 8, color: int = 2, before: bytes = b"") -> bytes:
    """A small file of many black pixels."""
    row = bytes(1 + (width * {0: 1, 2: 3, 6: 4}[color] * bits + 7) // 8)
    pack = zlib.compressobj(1)
    content = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    encoded = file_of(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    return encoded[:-2] + encoded[encoded.rindex(b"\xff\xda") : -2] * count + encoded[-2:]


HURTING = {
    "PNG": lambda: empty_png(4200, 4200, 1, 0),
    "long PNG": lambda: empty_png(20_000, 1, 1, 0),
    "high PNG": lambda: empty_png(1, 20_000, 1, 0),
    "JPEG": lambda: file_of(Image.new("L", (4200, 4200)), "JPEG"),
    "long JPEG": lambda: file_of(Image.new("L", (60_000, 1)), "JPEG"),
    "JPEG of many scans": lambda: many_scans(1024, 300),
    "small JPEG of many scans": lambda: many_scans(SIDE, 25_000),
    "GIF": lambda: file_of(Image.new("P", (4200, 4200)), "GIF"),
    "WebP": lambda: file_of(Image.new("RGB", (16_383, 1100)), "WEBP", quality=0, method=0),
    "PGM": lambda: b"P5 100000 100000 255 ",
    "BMP": lambda: b"BM" + struct.pack("<IHHIIiiHHIIIIII", 0, 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6),
}


@pytest.mark.parametrize("kind", HURTING)
def test_an_image_that_costs_too_much_is_refused_before_it_costs_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = HURTING[kind]()
    assert len(encoded) < 1_000_000
    said = r"claims .*FACEREC_MAX_PIXELS.* in the environment"
    with little(), pytest.raises(DamagedDataError, match=said) as refused:
        decode(encoded)
    assert "\n" not in str(refused.value)
    assert for_device(encoded) is None
    if (setting := re.search(r"FACEREC_MAX_PIXELS=(\d+)", str(refused.value))) and kind not in ("PGM", "BMP"):
        monkeypatch.setenv("FACEREC_MAX_PIXELS", str(int(setting[1]) - 1))
        with pytest.raises(DamagedDataError, match="claims"):
            decode(encoded)
        if "scans" not in kind:  # which are inconsistent here
            monkeypatch.setenv("FACEREC_MAX_PIXELS", setting[1])
            assert decode(encoded).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"P2 3000 3000 255 " + b"7 " * 9_000_000, r"in 18,000,017 bytes of text \(P2\), .*binary form, P5"),
        (b"P3 1 1 255 1 2 3" + b" " * (1 << 22), r"bytes of text \(P3\), .*binary form, P6"),
        (b"P5\n" + b"#" * (1 << 22) + b"\n1 1 255\n7", "does not decode: .*header"),
    ],
)
def test_text_that_takes_minutes_to_read_is_refused(encoded: bytes, message: str) -> None:
    with pytest.raises(DamagedDataError, match=message):
        decode(encoded)


def test_comments_are_left_out_of_pixels_written_as_text() -> None:
    comments = b"#\n" * (1 << 20)
    assert (decode(b"P2 # one\n112 112 # two\n255\n" + comments + b"7 #\n" * 112 * 112) == 7).all()


def test_the_line_names_the_image_its_size_and_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, encoded in (("a/1.png", empty_png(4200, 4200)), ("b/1.png", empty_png(64, 64))):
        (tmp_path / "faces" / name).parent.mkdir(parents=True)
        (tmp_path / "faces" / name).write_bytes(encoded)
    line = (
        r"4200×4200 pixels, which count as 17,640,000: more than the limit of 16,777,216; "
        r"FACEREC_MAX_PIXELS=17640000 in the environment reads it"
    )
    faces = open_faces(DataSettings(kind="folder", root=str(tmp_path / "faces")))
    with pytest.raises(DamagedDataError, match=rf"a/1\.png: the image claims {line}; data\.on_error=skip"):
        list(Loader(faces, 2).batches(0))
    monkeypatch.setenv("FACEREC_MAX_PIXELS", "17640000")
    assert len(list(Loader(faces, 2).batches(0))) == 1
    monkeypatch.setenv("FACEREC_MAX_PIXELS", "1e9")
    with pytest.raises(ConfigError, match="FACEREC_MAX_PIXELS=1e9: must be a number of pixels"):
        list(Loader(faces, 2).batches(0))


def test_photographs_to_pack_may_be_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photographs" / "ann").mkdir(parents=True)
    photograph_of_24_megapixels = file_of(photograph(4000, 6000), "JPEG", quality=50)
    (tmp_path / "photographs" / "ann" / "1.jpg").write_bytes(photograph_of_24_megapixels)
    (tmp_path / "photographs" / "ann" / "2.png").write_bytes(empty_png(10_000, 9000, 1, 0))
    assert data("pack", tmp_path / "photographs", tmp_path / "out") == 0
    (row,) = (tmp_path / "out" / "report.csv").read_text().splitlines()[1:]
    assert row.startswith("ann/2.png,dropped,") and "FACEREC_MAX_PIXELS=90000000" in row


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_whose_entries_all_point_at_the_same_megabyte_costs_no_more_than_it(kind: str) -> None:
    entries = b"".join(struct.pack("<HHII", 0x9000 + i, 7, 1 << 20, 8) for i in range(4000))
    exif = (
        b"II*\0" + struct.pack("<IH", 8, 4001) + entries + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    ).ljust(1 << 20)
    encoded = empty_png(SIDE, SIDE, before=chunk(b"eXIf", exif))
    if kind == "JPEG":
        parts = [app1(b"Exif\0\0" + exif[at : at + 65_000]) for at in range(0, len(exif), 65_000)]
        encoded = with_segments(file_of(Image.new("RGB", (SIDE, SIDE)), "JPEG"), *parts)
    with little(10_000_000):
        decode(encoded)


def test_text_that_unpacks_to_gigabytes_is_refused_or_left_alone() -> None:
    for kind, flag in ((b"zTXt", b"\0"), (b"iCCP", b"\0"), (b"iTXt", b"\1\0\0\0")):
        pack = zlib.compressobj(9)
        content = b"".join(pack.compress(bytes(1 << 24)) for _ in range(8)) + pack.flush()
        encoded = empty_png(SIDE, SIDE, before=chunk(kind, b"name\0" + flag + content))
        with little(10_000_000), contextlib.suppress(DamagedDataError):
            decode(encoded)


def test_what_is_no_file_and_what_is_too_long_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "long.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedDataError, match="is no file"):
        read_file(tmp_path / "pipe.jpg")
    with pytest.raises(
        DamagedDataError, match=r"1,099,511,627,776 bytes, more than the .*FACEREC_MAX_PIXELS="
    ):
        read_file(tmp_path / "long.jpg")


def test_a_long_narrow_photograph_is_searched_for_faces_in_bounded_memory() -> None:
    pytest.importorskip("onnxruntime")
    from facerec.images.detection import Mtcnn

    assert Mtcnn().detect(np.zeros((1, 16_000, 3), np.uint8)) == []
