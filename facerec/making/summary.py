"""What `facerec-data info` tells about a pack: identities, images, sizes, formats, what agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facerec.errors import DamagedDataError
from facerec.images.decode import read_header
from facerec.packs.index import RecordIndex
from facerec.packs.pack import Pack, open_pack
from facerec.packs.verification import load_verification

_SAMPLE = 200  # images whose headers are read
_BAR = 40  # characters of the longest bar


def summarise(path: Path) -> Iterator[str]:
    """Lines about a pack (a folder or `.rec`) or a verification pack (`.bin`).

    Raises:
        MissingDataError: where there is no pack.
        DamagedDataError: where what the lines need cannot be read; records damaged inside are only left out.
    """
    if path.suffix == ".bin":
        yield from _verification_lines(path)
        return
    pack = open_pack(path, damaged="skip")
    count_C = np.bincount(pack.label_N, minlength=pack.num_classes)
    gaps = int(pack.classes[-1]) + 1 - pack.num_classes
    yield _line("file", f"{pack.root}, {_bytes(pack.root.stat().st_size)}, {len(pack.reader):,} records")
    yield _line("layout", f"{pack.layout} ({_layout(pack)})")
    yield _line(
        "identities", f"{pack.num_classes:,}, labels {pack.classes[0]} … {pack.classes[-1]}, {_gaps(gaps)}"
    )
    yield _line("images", f"{len(pack):,}; of one identity {_spread(count_C)}")
    yield from _histogram(count_C)
    yield _line("bytes", f"{_spread(_sizes(pack))} an image (sampled)")
    yield from _formats(pack)
    yield _line("property", _property(pack))
    yield _line("index", _index(pack.reader.index, pack.reader.index_path))


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _layout(pack: Pack) -> str:
    if pack.layout == "im2rec":
        return "every record is an image"
    return f"keys {pack.key(0)} … {pack.key(len(pack) - 1)} are images"


def _gaps(gaps: int) -> str:
    return f"{gaps:,} of them unused" if gaps else "no gaps"


def _spread(number_K: np.ndarray) -> str:
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


def _sample(pack: Pack) -> list[int]:
    return np.unique(np.linspace(0, len(pack) - 1, _SAMPLE).astype(int)).tolist()


def _sizes(pack: Pack) -> np.ndarray:
    sizes = []
    for i in _sample(pack):
        try:
            sizes.append(len(pack.encoded(i)))
        except DamagedDataError:
            sizes.append(0)
    return np.array(sizes)


def _formats(pack: Pack) -> Iterator[str]:
    """Format, size and mode of sampled images, from their headers."""
    found: Counter[str] = Counter()
    for i in _sample(pack):
        try:
            header = read_header(pack.encoded(i))
            found[f"{header.format} {header.width}×{header.height} {header.mode}"] += 1
        except DamagedDataError:
            found["not readable: see `facerec-data verify`"] += 1
    total = sum(found.values())
    for row, (kind, many) in enumerate(found.most_common()):
        yield _line("formats" if row == 0 else "", f"{many} of {total} sampled: {kind}")


def _property(pack: Pack) -> str:
    given = pack.property
    if given is None:
        return "none"
    agrees = (
        "agrees with the labels" if given.num_classes == pack.num_classes else "DISAGREES with the labels"
    )
    return f"{given.num_classes},{given.height},{given.width}: {agrees}"


def _index(index: RecordIndex, path: Path) -> str:
    state = {"cached": "mapped from its cache", "parsed": "parsed now", "rebuilt": "rebuilt now"}[
        index.origin
    ]
    kept = "" if index.shared else "; no folder takes a cache of it"
    keys = "keys without gaps" if index.dense_from is not None else "keys with gaps or unordered"
    return f"{path.name}, {len(index):,} lines, {keys}; {state}{kept}"


def _bytes(count: int) -> str:
    exponent = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**exponent:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[exponent]}"


def _verification_lines(path: Path) -> Iterator[str]:
    pack = load_verification(path)
    same = int(np.count_nonzero(pack.issame_N))
    yield _line("file", f"{path}, {_bytes(path.stat().st_size)}")
    yield _line("pairs", f"{len(pack):,}: {same:,} of one person, {len(pack) - same:,} of two")
    yield _line("images", f"{2 * len(pack):,}, {len(pack.images):,} of them distinct")
