"""The contents of a pack for `facerec-data info`: lines about it, and its first faces on one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from facerec.errors import DamagedDataError
from facerec.files import replacing
from facerec.images.decode import Encoded, decode, read_header
from facerec.packs.index import RecordIndex
from facerec.packs.pack import Pack, open_pack
from facerec.packs.verification import load_verification

_SAMPLE = 200  # images whose headers are read
_BAR = 40  # characters of the longest bar
_SIDE, _COLUMNS, _GAP = 112, 10, 2  # of the sheet of faces
_GROUND, _DAMAGED = (48, 48, 48), (160, 0, 0)


def summarise(path: Path) -> Iterator[str]:
    """Yield lines about a pack (a folder or `.rec`) or a verification pack (`.bin`).

    Raises:
        MissingDataError: there is no pack.
        DamagedDataError: what the lines need cannot be read; records damaged inside are only left out.
    """
    if path.suffix == ".bin":
        yield from _verification_lines(path)
        return
    pack = open_pack(path, damaged="skip")
    count_C = np.bincount(pack.label_N, minlength=pack.num_classes)
    gaps = int(pack.classes[-1]) + 1 - pack.num_classes
    unused = f"{gaps:,} of them unused" if gaps else "no gaps"
    keys = f"keys {pack.key(0)} … {pack.key(len(pack) - 1)} are images"
    layout = keys if pack.layout == "InsightFace" else "every record is an image"
    encoded = list(_sample(pack))
    sizes = np.array([len(one) for one in encoded])
    yield _line("file", f"{pack.root}, {_bytes(pack.root.stat().st_size)}, {len(pack.reader):,} records")
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


def _sample(pack: Pack) -> Iterator[Encoded]:
    """Yield some images, evenly spread; nothing in place of a damaged one."""
    for i in np.unique(np.linspace(0, len(pack) - 1, _SAMPLE).astype(int)).tolist():
        try:
            yield pack.encoded(i)
        except DamagedDataError:
            yield b""


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
    return f"{path.name}, {len(index):,} lines, {keys}; {origins[index.origin]}{cache}"


def _bytes(count: int) -> str:
    exponent = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**exponent:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[exponent]}"


def _verification_lines(path: Path) -> Iterator[str]:
    pack = load_verification(path)
    same = int(np.count_nonzero(pack.issame_N))
    yield _line("file", f"{path}, {_bytes(path.stat().st_size)}")
    yield _line("pairs", f"{len(pack):,}: {same:,} genuine, {len(pack) - same:,} impostor")
    yield _line("images", f"{2 * len(pack):,}, {len(pack.images):,} of them distinct")


def contact_sheet(pack: Pack, out: Path, count: int = 100) -> int:
    """Write a PNG of the first image of each of the first `count` identities, ten per row.

    A damaged image is a red square. Returns the number of faces; raises StorageError.
    """
    _, first_C = np.unique(pack.label_N, return_index=True)
    shown = first_C[:count].tolist()
    step = _SIDE + _GAP
    columns, rows = min(_COLUMNS, len(shown)), -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), _GROUND)
    for cell, i in enumerate(shown):
        corner = (cell % _COLUMNS * step + _GAP, cell // _COLUMNS * step + _GAP)
        try:
            sheet.paste(Image.fromarray(decode(pack.encoded(i), _SIDE)), corner)
        except DamagedDataError:
            sheet.paste(_DAMAGED, (*corner, corner[0] + _SIDE, corner[1] + _SIDE))
    with replacing(out) as file:
        sheet.save(file, "PNG")
    return len(shown)
