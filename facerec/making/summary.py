"""The contents of any images for `facerec-data info`: lines about them, and faces of the first identities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from facerec.errors import DamagedDataError, MissingDataError, counted, size_text
from facerec.files import replacing
from facerec.images.decode import Encoded, decode, read_header
from facerec.images.images import Images, LabelledImages
from facerec.loading.opening import PairImages, open_images
from facerec.packs.index import RecordIndex
from facerec.packs.pack import Pack, open_pack
from facerec.packs.verification import load_verification

_SAMPLE = 200  # images whose headers are read
_BAR = 40  # characters of the longest bar
_SIDE, _COLUMNS, _ROWS, _GAP, _CAPTION = 112, 8, 25, 2, 16  # of the sheet of faces, in pixels or faces
_GROUND, _DAMAGED, _TEXT = (48, 48, 48), (160, 0, 0), (255, 255, 255)


def summarise(path: Path) -> Iterator[str]:
    """Yield lines about a pack (a folder or `.rec`), a verification pack (`.bin`) or the images of a list.

    Raises:
        MissingDataError: there is no pack.
        DamagedDataError: what the lines need cannot be read; records damaged inside are only left out.
    """
    if path.suffix == ".bin":
        yield from _verification_lines(path)
        return
    if path.is_file() and path.suffix != ".rec":
        images = open_images(path)
        yield _line("images", images.describe())
        yield from _formats(list(images.sample(_SAMPLE)))
        return
    pack = open_pack(path, damaged="skip")
    count_C = np.bincount(pack.label_N, minlength=pack.num_classes)
    gaps = int(pack.classes[-1]) + 1 - pack.num_classes
    unused = f"{gaps:,} of them unused" if gaps else "no gaps"
    keys = f"keys {pack.key(0)} … {pack.key(len(pack) - 1)} are images"
    layout = keys if pack.layout == "InsightFace" else "every record is an image"
    encoded = list(pack.sample(_SAMPLE))
    sizes = np.array([len(one) for one in encoded])
    yield _line(
        "file", f"{pack.root}, {size_text(pack.root.stat().st_size)}, {counted(len(pack.reader), 'record')}"
    )
    yield _line("layout", f"{pack.layout} ({layout})")
    yield _line(
        "identities", f"{pack.num_classes:,}, labels {pack.classes[0]} … {pack.classes[-1]}, {unused}"
    )
    yield _line("images", f"{len(pack):,}; of one identity {_range(count_C)}")
    yield from _histogram(count_C)
    yield _line("bytes", f"{_range(sizes)} per image (sampled)")
    yield from _formats(encoded)
    yield _line("property", _property(pack))
    yield _line("index", _index(pack.reader.index, pack.reader.index_path))


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _range(number_K: np.ndarray) -> str:
    return f"{number_K.min():,} (least), {np.median(number_K):,.0f} (median), {number_K.max():,} (most)"


def _histogram(count_C: np.ndarray) -> Iterator[str]:
    """Identities by their number of images, in steps of two."""
    top = int(count_C.max()).bit_length()
    step_C = np.floor(np.log2(count_C)).astype(int)
    identities = np.bincount(step_C, minlength=top)
    for step, many in enumerate(identities.tolist()):
        low, high = 1 << step, (2 << step) - 1
        if step >= int(step_C.min()):
            bar = "#" * -(-many * _BAR // max(identities.max(), 1))
            yield f"{'':<12}{low if low == high else f'{low}-{high}':>11} {many:>9,} {bar}"


def _formats(images: list[Encoded]) -> Iterator[str]:
    """Format, size and mode of images, from their headers."""
    found: Counter[str] = Counter()
    for encoded in images:
        try:
            header = read_header(encoded)
            found[f"{header.format} {header.width}×{header.height} {header.mode}"] += 1
        except DamagedDataError:
            found["not readable: see `facerec-data verify`"] += 1
    for row, (kind, many) in enumerate(found.most_common()):
        yield _line("formats" if row == 0 else "", f"{many} of {len(images)} sampled: {kind}")


def _property(pack: Pack) -> str:
    given = pack.property
    if given is None:
        return "none"
    verb = "agrees" if given.num_classes == pack.num_classes else "DISAGREES"
    return f"{given.num_classes},{given.height},{given.width}: {verb} with the labels"


def _index(index: RecordIndex, path: Path) -> str:
    origins = {"cached": "mapped from its cache", "parsed": "parsed now", "rebuilt": "rebuilt now"}
    keys = "keys without gaps" if index.first is not None else "keys with gaps or unordered"
    cache = "" if index.shared else "; no folder takes a cache of it"
    return f"{path.name}, {counted(len(index), 'line')}, {keys}; {origins[index.origin]}{cache}"


def _verification_lines(path: Path) -> Iterator[str]:
    pack = load_verification(path)
    same = int(np.count_nonzero(pack.issame_N))
    yield _line("file", f"{path}, {size_text(path.stat().st_size)}")
    yield _line("pairs", f"{len(pack):,}: {same:,} genuine, {len(pack) - same:,} impostor")
    yield _line("images", f"{2 * len(pack):,}, {len(pack.images):,} of them distinct")


def contact_sheet(images: Images, out: Path) -> str:
    """Write a PNG of the first identities, a row each: the name, the number of images, up to eight of them.

    Of pairs whose identities are not known a row is a pair. A damaged image is a red square.

    Returns:
        What is on it, for a line.

    Raises:
        StorageError: it cannot be written.
    """
    kind, count, shown = _first_groups(images)
    columns = min(_COLUMNS, max(len(rows) for _, rows in shown))
    step, height = _SIDE + _GAP, _SIDE + _GAP + _CAPTION
    sheet = Image.new("RGB", (max(columns, 2) * step + _GAP, len(shown) * height + _GAP), _GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (name, members) in enumerate(shown):
        many = "" if kind == "pair" else f" ({counted(len(members), 'image')})"
        draw.text((_GAP, row * height + _GAP), _fitting(name, many, sheet.width, font), _TEXT, font)
        for column, i in enumerate(members[:_COLUMNS]):
            corner = (column * step + _GAP, row * height + _CAPTION + _GAP)
            try:
                sheet.paste(Image.fromarray(decode(images.encoded(i), _SIDE)), corner)
            except (DamagedDataError, MissingDataError):
                sheet.paste(_DAMAGED, (*corner, corner[0] + _SIDE, corner[1] + _SIDE))
    with replacing(out) as file:
        sheet.save(file, "PNG")
    some = (
        f"the first {len(shown):,} of {counted(count, kind)}" if count > len(shown) else counted(count, kind)
    )
    return f"{some}, up to {columns} images each, on {out}" if kind == "identity" else f"{some}, on {out}"


def _first_groups(images: Images) -> tuple[str, int, list[tuple[str, list[int]]]]:
    """``identity`` or ``pair``, how many there are, and of the first their names and distinct images."""
    if isinstance(images, LabelledImages):
        order_N = np.argsort(images.label_N, kind="stable")
        groups = np.split(order_N, np.flatnonzero(np.diff(images.label_N[order_N])) + 1)
        return "identity", len(groups), [(images.label(int(one[0])), one.tolist()) for one in groups[:_ROWS]]
    if isinstance(images, PairImages):
        if images.identities is None:
            kinds = {"1": "genuine", "0": "impostor"}
            pairs = range(min(len(images) // 2, _ROWS))
            shown = [(f"pair {i}, {kinds[images.label(2 * i)]}", [2 * i, 2 * i + 1]) for i in pairs]
            return "pair", len(images) // 2, shown
        names = images.identities.tolist()
    else:
        names = [images.label(i) for i in range(len(images))]
    members: dict[str, list[int]] = {}
    for i in range(len(images)) if images.first_N is None else np.unique(images.first_N).tolist():
        members.setdefault(names[i], []).append(i)
    return "identity", len(members), list(members.items())[:_ROWS]


def _fitting(name: str, many: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The name, shortened until it fits."""
    name = "".join(sign if sign.isprintable() else "?" for sign in name) or "no label"
    if font.getlength(name + many) <= width - 2 * _GAP:
        return name + many
    while name and font.getlength(f"{name}…{many}") > width - 2 * _GAP:
        name = name[:-1]
    return f"{name}…{many}"
