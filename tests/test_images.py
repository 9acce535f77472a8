"""One reading of an image: every format, at every size and on every path, as Pillow sees it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from facerec.cli.embed import run as facerec_embed
from facerec.errors import DamagedDataError
from facerec.evaluation.embedding import embed_images
from facerec.images.decode import ENDINGS, Pixels, decode, decode_full_size, read_header
from facerec.images.face_maker import FaceMaker
from facerec.images.preprocessing import Preprocessing
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.models.model import Model
from facerec.packs.framing import Record
from facerec.packs.pack import open_pack
from facerec.packs.recordio import RecordWriter
from facerec.packs.verification import load_verification, write_verification
from tests.making import data

SIDE = 112
SIZES = {"112": (112, 112), "224": (224, 224), "oblong": (150, 118), "pixel": (1, 1)}
SEGMENTS = {
    "first": b"",
    "after a comment": b"\xff\xfe" + struct.pack(">H", 66) + b"made by some program".ljust(64),
    "after Photoshop's": b"\xff\xed\x00\x44"
    + b"Photoshop 3.0\0 thumbnail \xff\xd8\xff\xda\xff\xd9".ljust(66),
    "after a profile": b"\xff\xe2\xff\xff" + bytes(range(256)) * 255 + bytes(253),
}


def photograph(height: int, width: int, seed: int = 3) -> Image.Image:
    """A smooth random colour image of (height, width) pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# Independent readings and writings ------------------------------------------------------------------------


def as_pillow_sees(encoded: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Upright, 16 bits scaled to 8, transparency dropped; fitted where there is a size (height, width)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image).astype(float) / 65535 * 255).astype(np.uint8))
    image = image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    if size is not None and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(
    value_HWK: np.ndarray, bits: int, color: int, *, interlaced: bool = False, before=b"", behind=b""
) -> bytes:
    """A PNG of values below 2^bits; Pillow writes no 16-bit colours, few bits or interlaced ones."""
    height, width, _ = value_HWK.shape
    passes = [(slice(None), slice(None))]
    if interlaced:  # Adam7
        starts = (
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        )
        passes = [(slice(y, None, dy), slice(x, None, dx)) for y, x, dy, dx in starts]
    rows = b""
    for part in passes:
        for row in value_HWK[part].astype(np.uint32):
            text = "".join(f"{value:0{bits}b}" for value in row.ravel().tolist())
            if text:
                rows += b"\0" + int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + behind
        + chunk(b"IEND", b"")
    )


def exif_of(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """EXIF data with another entry, then the orientation, as a short or a long."""
    begin = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(
        order + ("I" if kind == 4 else "HH"), *((orientation,) if kind == 4 else (orientation, 0))
    )
    first = struct.pack(order + "IHHHI", 8, 2, 0x010F, 2, 4) + b"cam\0"
    return begin + first + struct.pack(order + "HHI", 0x0112, kind, 1) + value + struct.pack(order + "I", 0)


def with_segments(jpeg: bytes, *contents: bytes) -> bytes:
    """The same JPEG with more segments behind its JFIF one, if it has any."""
    at = 4 + int.from_bytes(jpeg[4:6]) if jpeg[2:4] == b"\xff\xe0" else 2
    return jpeg[:at] + b"".join(contents) + jpeg[at:]


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def netpbm(value_HW: np.ndarray, kind: int, largest: int) -> bytes:
    """P1 … P6 of values 0 … largest, (height, width) or (height, width, 3)."""
    height, width = value_HW.shape[:2]
    head = b"P%d\n# a comment\n%d %d\n" % (kind, width, height) + (
        b"" if kind in (1, 4) else b"%d\n" % largest
    )
    if kind <= 3:
        return (
            head + b"\n".join(b" ".join(b"%d" % v for v in row.ravel().tolist()) for row in value_HW) + b"\n"
        )
    if kind == 4:
        return head + np.packbits(value_HW.astype(np.uint8), axis=1).tobytes()
    return head + value_HW.astype(">u2" if largest > 255 else np.uint8).tobytes()


# The files ------------------------------------------------------------------------------------------------


def jpegs(image: Image.Image) -> dict[str, bytes]:
    plain = file_of(image, "JPEG", quality=92)
    cmyk = file_of(image.convert("CMYK"), "JPEG", quality=95)
    made = {
        "baseline": plain,
        "4:4:4": file_of(image, "JPEG", quality=95, subsampling=0),
        "4:2:2": file_of(image, "JPEG", subsampling=1),
        "progressive": file_of(image, "JPEG", progressive=True),
        "optimised": file_of(image, "JPEG", optimize=True),
        "restarts": file_of(image, "JPEG", restart_marker_blocks=1),
        "gray": file_of(image.convert("L"), "JPEG"),
        "gray progressive": file_of(image.convert("L"), "JPEG", progressive=True),
        "cmyk": cmyk,
        "ycck": cmyk.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
        "rgb": file_of(image, "JPEG", keep_rgb=True),
        "without JFIF": plain[:2] + plain[20:],
        "bytes behind": plain + b"tail\xff\xd8",
        "profile": with_segments(plain, SEGMENTS["after a profile"]),
        "exif of nothing": with_segments(plain, app1(b"Exif\0\0")),
        "exif of another order": with_segments(plain, app1(b"Exif\0\0" + exif_of(6, ">"))),
        "exif as long": with_segments(plain, app1(b"Exif\0\0" + exif_of(8, ">", 4))),
        "exif without JFIF": with_segments(plain[:2] + plain[20:], app1(b"Exif\0\0" + exif_of(5))),
        "exif of an unknown turn": with_segments(plain, app1(b"Exif\0\0" + exif_of(9))),
        "exif twice": with_segments(plain, *[app1(b"Exif\0\0" + exif_of(n)) for n in (3, 6)]),
        "mpo": file_of(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
    }
    for place, segment in SEGMENTS.items():
        for turn in range(1, 9) if place == "after a comment" else (6,):
            made[f"exif {turn} {place}"] = with_segments(plain, segment, app1(b"Exif\0\0" + exif_of(turn)))
    return {f"jpeg, {kind}": encoded for kind, encoded in made.items()}


def pngs(image: Image.Image) -> dict[str, bytes]:
    rgb = np.asarray(image)
    made = {}
    for bits in (1, 2, 4, 8, 16):
        wide = rgb.astype(np.int64) * 257 >> (16 - bits)
        made[f"gray {bits}"] = png_of(wide[..., :1], bits, 0)
        made[f"gray {bits} interlaced"] = png_of(wide[..., :1], bits, 0, interlaced=True)
        if bits < 16:
            clear = struct.pack(">H", wide[0, 0, 0])
            made[f"gray {bits} tRNS"] = png_of(wide[..., :1], bits, 0, before=chunk(b"tRNS", clear))
            colors = np.linspace((40, 0, 250), (200, 250, 10), 1 << bits).astype(np.uint8).tobytes()
            made[f"palette {bits}"] = png_of(wide[..., :1], bits, 3, before=chunk(b"PLTE", colors))
            before = chunk(b"PLTE", colors) + chunk(b"tRNS", bytes(range(1 << bits)))
            made[f"palette {bits} tRNS"] = png_of(wide[..., :1], bits, 3, before=before)
        if bits >= 8:
            alpha = np.concatenate([wide, wide[..., :1]], axis=2)
            made[f"gray alpha {bits}"] = png_of(wide[..., :2], bits, 4)
            made[f"rgb {bits}"] = png_of(wide, bits, 2)
            made[f"rgb {bits} interlaced"] = png_of(wide, bits, 2, interlaced=True)
            made[f"rgba {bits}"] = png_of(alpha, bits, 6)
    made["rgb tRNS"] = png_of(rgb, 8, 2, before=chunk(b"tRNS", struct.pack(">3H", *rgb[0, 0].tolist())))
    for turn in (3, 6, 7):
        made[f"exif {turn}"] = png_of(rgb, 8, 2, before=chunk(b"eXIf", exif_of(turn)))
        made[f"exif {turn} behind"] = png_of(rgb, 8, 2, behind=chunk(b"eXIf", exif_of(turn, ">")))
    hexadecimal = (b"Exif\0\0" + exif_of(6)).hex().encode()
    profile = chunk(
        b"tEXt", b"Raw profile type exif\0\nexif\n      %d\n" % (len(hexadecimal) // 2) + hexadecimal
    )
    made["exif as text"] = png_of(rgb, 8, 2, before=profile)
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x:xmpmeta tiff:Orientation="8"/>'
    made["xmp"] = png_of(rgb, 8, 2, before=chunk(b"iTXt", xmp))
    return {f"png, {kind}": encoded for kind, encoded in made.items()}


def others(image: Image.Image) -> dict[str, bytes]:
    rgb, gray = np.asarray(image), np.asarray(image.convert("L"))
    more = [image.rotate(90), image.rotate(180)]
    clear = image.copy()
    clear.putalpha(40)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "webp": file_of(image, "WEBP"),
        "webp lossless": file_of(image, "WEBP", lossless=True),
        "webp alpha": file_of(clear, "WEBP", lossless=True, exact=True),
        "webp exif": file_of(image, "WEBP", exif=exif),
        "webp frames": file_of(image, "WEBP", save_all=True, append_images=more),
        "gif": file_of(image.convert("P"), "GIF"),
        "gif gray": file_of(image.convert("L"), "GIF"),
        "gif clear": file_of(image.convert("P"), "GIF", transparency=7),
        "gif frames": file_of(image, "GIF", save_all=True, append_images=more),
        "gif interlaced": file_of(image.convert("P"), "GIF", interlace=1),
    }
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        made[f"bmp {mode}"] = file_of(image.convert(mode), "BMP")
    for plain in (True, False):
        name = "ascii" if plain else "binary"
        made[f"pbm {name}"] = netpbm(gray > 127, 1 if plain else 4, 1)
        for largest in (1, 15, 255, 256, 1023, 65535) if image.height <= SIDE else (255, 1023):
            made[f"pgm {name} {largest}"] = netpbm(
                np.rint(gray / 255 * largest).astype(int), 2 if plain else 5, largest
            )
            made[f"ppm {name} {largest}"] = netpbm(
                np.rint(rgb / 255 * largest).astype(int), 3 if plain else 6, largest
            )
    return made


def files_of(size: tuple[int, int]) -> dict[str, bytes]:
    image = photograph(*size)
    return jpegs(image) | pngs(image) | others(image)


class Case(NamedTuple):
    """A file, and what it shows at SIDE×SIDE pixels."""

    kind: str
    encoded: bytes
    face_HWC: Pixels


@pytest.fixture(scope="module", params=SIZES)
def cases(request: pytest.FixtureRequest) -> list[Case]:
    files = files_of(SIZES[request.param])
    return [Case(kind, encoded, as_pillow_sees(encoded, (SIDE, SIDE))) for kind, encoded in files.items()]


def agree(kind: str, ours_HWC: np.ndarray, theirs_HWC: np.ndarray) -> None:
    """Equal to Pillow; CMYK up to what two conversions round differently."""
    assert ours_HWC.shape == theirs_HWC.shape and ours_HWC.dtype == np.uint8, kind
    off = int(np.abs(ours_HWC.astype(int) - theirs_HWC).max())
    assert off <= (2 if "cmyk" in kind or "ycck" in kind else 0), f"{kind}: off by {off}"


def in_folder(cases: list[Case], folder: Path) -> Path:
    """The files as images of two identities, under all endings in turn."""
    for i, case in enumerate(cases):
        path = folder / ("ann", "bob")[2 * i // len(cases)] / f"{i:03}{ENDINGS[i % len(ENDINGS)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.encoded)
    return folder


# Paths ----------------------------------------------------------------------------------------------------


def test_an_image_has_the_pixels_that_pillow_sees(cases: list[Case]) -> None:
    for kind, encoded, face_HWC in cases:
        agree(kind, decode(encoded), face_HWC)
        whole_HWC = as_pillow_sees(encoded)
        agree(kind, decode_full_size(encoded), whole_HWC)
        header = read_header(encoded)
        assert (header.height, header.width) == whole_HWC.shape[:2], kind


def test_training_reads_a_pack_and_a_folder_as_pillow_does(cases: list[Case], tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "train.rec") as writer:
        for i, case in enumerate(cases):
            writer.write(i, Record(0, float(i % 2), i, 0, case.encoded))
    root = in_folder(cases, tmp_path / "faces")
    folder = open_faces(DataSettings(kind="folder", root=str(root)))
    for faces in (open_pack(tmp_path / "train.rec"), folder):
        (batch,) = Loader(faces, len(cases), DataSettings(shuffle="none")).batches(0)
        for (kind, _, face_HWC), image_HWC in zip(cases, batch.image_BHWC.numpy(), strict=True):
            agree(kind, image_HWC, face_HWC)


@pytest.mark.parametrize("cases", ["112"], indirect=True)
def test_the_device_is_given_only_what_it_decodes_as_pillow_does(cases: list[Case], tmp_path: Path) -> None:
    faces = open_faces(DataSettings(kind="folder", root=str(in_folder(cases, tmp_path))))
    (batch,) = Loader(faces, len(cases), DataSettings(shuffle="none", decoder="device")).batches(0)
    assert batch.undecoded is not None and sum(one.ndim == 1 for one in batch.undecoded.images) >= 9
    image_BHWC = batch.undecoded.decode(torch.device("cpu")).numpy()
    for (kind, _, face_HWC), image_HWC in zip(cases, image_BHWC, strict=True):
        agree(kind, image_HWC, face_HWC)


class AsPixels(torch.nn.Module):
    """Embeds an image as its pixels."""

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return image_BCHW.flatten(1)


def as_image(embedding_D: np.ndarray) -> np.ndarray:
    return np.rint(embedding_D.reshape(3, SIDE, SIDE).transpose(1, 2, 0)).astype(np.uint8)


def test_evaluation_reads_a_verification_set_as_pillow_does(cases: list[Case], tmp_path: Path) -> None:
    write_verification(tmp_path / "all.bin", [case.encoded for case in cases] * 2, [True] * len(cases))
    pack = load_verification(tmp_path / "all.bin")
    model = Model(AsPixels(), Preprocessing(size=SIDE, mean=0.0, std=1.0))
    embedding_PD = embed_images(model, pack.images, flip=False).plain_PD
    place = {encoded: i for i, encoded in enumerate(pack.images)}
    for kind, encoded, face_HWC in cases:
        agree(kind, as_image(embedding_PD[place[encoded]]), face_HWC)


def test_facerec_embed_reads_a_folder_as_pillow_does(cases: list[Case], tmp_path: Path) -> None:
    root = in_folder(cases, tmp_path / "faces")
    torch.jit.trace(AsPixels(), torch.zeros(2, 3, SIDE, SIDE)).save(str(tmp_path / "pixels.pt"))
    how = ["--allow-code", "--mean", "0", "--std", "1", "--channels", "rgb", "--size", str(SIDE), "--no-flip"]
    out = tmp_path / "out.npy"
    assert facerec_embed([str(root), str(out), "--ckpt", str(tmp_path / "pixels.pt"), *how]) == 0
    for (kind, _, face_HWC), embedding_D in zip(cases, np.load(out), strict=True):
        agree(kind, as_image(embedding_D), face_HWC)


@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_facerec_data_packs_every_format(cases: list[Case], tmp_path: Path, keep: list[str]) -> None:
    root, out = in_folder(cases, tmp_path / "faces"), tmp_path / "out"
    assert data("pack", root, out, *keep) == 0
    assert data("verify", out) == 0
    pack = open_pack(out)
    for i, (kind, encoded, face_HWC) in enumerate(cases):
        assert np.abs(decode(pack.encoded(i)).astype(int) - face_HWC).mean() < 6, kind  # compressed again
        if keep and bytes(pack.encoded(i)) == encoded:
            agree(kind, decode(pack.encoded(i)), face_HWC)


# What is missing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["112", "oblong"])
def test_an_image_is_read_in_full_or_refused(size: str) -> None:
    for kind, encoded in files_of(SIZES[size]).items():
        if (
            "ascii" in kind or "cmyk" in kind or "ycck" in kind
        ):  # a cut number is a number; rounded differently
            continue
        whole_HWC = as_pillow_sees(encoded)
        for cut in (0.4 * len(encoded), 0.05 * len(encoded), 30, 13, 12, 5, 3, 2, 1):
            length = len(encoded) - int(cut)
            try:
                read_HWC = decode_full_size(encoded[:length])
            except DamagedDataError:
                continue
            assert np.array_equal(read_HWC, whole_HWC), f"{kind}, {length} of {len(encoded)} bytes"


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(size: int, how: dict[str, object], mode: str) -> None:
    encoded = file_of(photograph(size, size).convert(mode), "JPEG", **how)
    for cut in (encoded[:-2], encoded[:-1]):
        assert np.array_equal(decode(cut), decode(encoded))
    assert FaceMaker(SIDE).make(encoded[:-2]).payload is not None
    for cut in (encoded[:-12], encoded[:-12] + b"\0" * 12, encoded[: encoded.rindex(b"\xff\xda")]):
        with pytest.raises(DamagedDataError, match="JPEG is damaged"):  # in the end, a scan is missing
            decode(cut)


def test_formats_that_are_not_read_are_refused_with_those_that_are() -> None:
    image = photograph(64, 64)
    sixteen_bits = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    for format, shown in (("TIFF", image), ("TIFF", sixteen_bits), ("ICO", image), ("TGA", image)):
        encoded = file_of(shown, format)
        with pytest.raises(
            DamagedDataError, match=r"known format \(.*; known are JPEG, PNG, WEBP, BMP, PPM, GIF"
        ):
            decode(encoded)
    with pytest.raises(DamagedDataError, match="floating-point numbers of unknown range"):
        decode(b"Pf\n4 4\n-1.0\n" + bytes(64))
