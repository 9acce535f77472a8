"""Face packs: a `.rec` as a set of training images with identity labels 0 … C−1, opened in milliseconds.

Two layouts. InsightFace: record 0 has flag 2 and labels (a, b); images are keys 1 … a−1, keys a … b−1 are
identity records. im2rec: every record is an image. The images' own labels decide what is an identity; the
file `property` beside the pack is only compared with them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import mmap
from array import array
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, MissingDataError, counted
from facerec.images.images import LabelledImages
from facerec.packs import cache, labels
from facerec.packs.recordio import RecordReader
from facerec.packs.text import is_number, stays_inside, wrong_line

_log = logging.getLogger(__name__)
Layout = Literal["InsightFace", "im2rec"]
OnDamage = Literal["raise", "skip"]
_CACHE = "labels"
_HINT = "correct that line, or move the file away to do without"  # of a .lst


class Property(NamedTuple):
    """The line of a `property` file."""

    num_classes: int
    height: int
    width: int


class Pack(LabelledImages):
    """The images of a `.rec`; made by `open_pack`.

    Attributes:
        reader: the open `.rec`.
        layout: ``InsightFace`` or ``im2rec``.
        property: what the file `property` says, None where there is none that can be read.
        classes: int64 original labels, growing; they may have gaps.
        skipped: the number of images left out because their records are damaged.
    """

    classes: np.ndarray

    def __init__(
        self, reader: RecordReader, title: str, damaged: OnDamage = "raise", warn: bool = True
    ) -> None:
        self.reader = reader
        self.title = title
        self.root = reader.path
        self.property = read_property(reader.path.with_name("property"))
        self._damaged = damaged
        index = reader.index  # before the stamps: it may have to be rebuilt
        stamps = [cache.stamp(reader.path), cache.stamp(reader.index_path)]
        found = cache.load(reader.path, _CACHE, stamps)
        if found is not None and _usable(found, len(index), damaged):
            arrays, values = found.arrays, found.values
        else:
            arrays, values = _read_labels(reader, damaged)
            found = cache.store(reader.path, _CACHE, stamps, arrays, **values)
            arrays = arrays if found is None else found.arrays
        self.layout: Layout = values["layout"]
        self.skipped: int = values["skipped"]
        self.label_N = arrays["label"]
        self.classes = arrays["class"]
        self._row_N = arrays.get("row")  # of each image in the index, where they are not one run of rows
        self._first_row: int = values["first_row"]
        rows = slice(self._first_row, self._first_row + len(self.label_N))
        self.offset_N = reader.offsets[rows if self._row_N is None else self._row_N]
        if warn and self.property is not None and self.property.num_classes != self.num_classes:
            said = (
                f"says {counted(self.property.num_classes, 'identity')}, the labels of {self.root.name} say"
            )
            _log.warning(
                "%s %s %d; the labels count", self.root.with_name("property"), said, self.num_classes
            )

    def encoded(self, i: int) -> memoryview:
        return self.reader.payload_at(self.offset_N.item(i))

    def key(self, i: int) -> int:
        """The key of image i."""
        row = self._first_row + i if self._row_N is None else self._row_N.item(i)
        return self.reader.index.keys_at(np.array([row])).item()

    def where(self, i: int) -> str:
        return self.reader.where(self.offset_N.item(i), self.key(i))

    @functools.cached_property
    def listing(self) -> Listing | None:
        """The `.lst` beside the pack, if there is one; raises DamagedDataError where it is malformed."""
        path = self.root.with_suffix(".lst")
        return Listing(path) if path.is_file() else None

    def name(self, i: int) -> str:
        """The relative path of image i: of the `.lst`, else ``label/key.jpg``, even of a damaged record."""
        key = self.key(i)
        listed = None if self.listing is None else self.listing.name(key)
        if listed:
            return listed
        encoded: bytes | memoryview = b""
        with contextlib.suppress(DamagedDataError):
            encoded = self.encoded(i)
        return image_name(None, key, super().label(i), encoded)

    def label(self, i: int) -> str:
        """The name of image i's identity: the folder that the `.lst` has it in, else its original label."""
        parent = PurePosixPath(self.name(i)).parent if self.listing is not None else PurePosixPath()
        return str(parent) if parent.name else super().label(i)

    def describe(self) -> str:
        return (
            f"{self.title}: {counted(self.num_classes, 'identity')}, {counted(len(self), 'image')}, "
            f"from {self.root} ({self.layout} layout)"
        )

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        return [*super().contents(), np.ascontiguousarray(self.offset_N), [str(len(self.reader.view))]]

    def prefetch(self, positions: Sequence[int]) -> None:
        self.reader.prefetch(self.offset_N[positions].tolist())

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.reader, self.title, self._damaged, False)  # the other process maps the same pages


def open_pack(root: str | Path, *, title: str | None = None, damaged: OnDamage = "raise") -> Pack:
    """Open a face pack; its labels are read once, checked, and kept in a cache that later processes map.

    Args:
        root: the folder that holds ``train.rec`` (or one `.rec` of another name), or the `.rec` itself.
        title: for logs; default: the folder's name, or the file's where that is not ``train.rec``.
        damaged: at image records whose headers are damaged: ``raise``, or ``skip`` them with a warning.
            Damage inside an image shows when it is decoded.

    Raises:
        MissingDataError: where there is no pack, or no image in it.
        DamagedDataError: naming key and offset, where a label is not an integer of 0 or more, below 2^62, or
            (unless skipped) a header is damaged; naming the line where the index is malformed.
    """
    path = find_rec(Path(root))
    if path.suffix == ".bin":
        raise MissingDataError(
            f"{path}: is a verification set; a .rec, or a folder with train.rec, is wanted"
        )
    if title is None:
        title = (path.absolute().parent.name if path.stem == "train" else path.stem) or path.stem
    return Pack(RecordReader(path), title, damaged)


def find_rec(root: Path) -> Path:
    """The `.rec` that `root` means; raises MissingDataError saying what was looked for, and what is there."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise MissingDataError(f"{root}: no such file or folder; expected a .rec, or a folder with train.rec")
    if (root / "train.rec").is_file():
        return root / "train.rec"
    packs = sorted(root.glob("*.rec"))
    if len(packs) == 1:
        return packs[0]
    if packs:
        some = ", ".join([*(path.name for path in packs[:4]), *["…"] * (len(packs) > 4)])
        raise MissingDataError(f"{root}: holds several packs ({some}); give the path of one")
    below = sorted(root.glob("*/*.rec"))
    hint = f"; did you mean {below[0].parent}?" if below else ""
    raise MissingDataError(f"{root}: holds no train.rec; put train.rec and train.idx there{hint}")


def read_property(path: Path) -> Property | None:
    """The line ``num_classes,height,width`` of a `property` file; None where there is none, or not that."""
    try:
        fields = [field.strip() for field in path.read_text("ascii")[:200].split(",")]
        if len(fields) != 3 or not all(is_number(field) and int(field) for field in fields):
            raise ValueError("three integers of 1 or more")
        return Property(*map(int, fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        _log.warning("%s: is not num_classes,height,width (%s); the labels count", path, problem)
        return None


def _read_labels(reader: RecordReader, damaged: OnDamage) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and values of the labels cache: dense labels, classes, rows where they are no run …"""
    layout, row_N, range_I2 = _images(reader)
    offset_N = reader.offsets[row_N]
    key_N = reader.index.keys_at(row_N)
    if not len(row_N):
        raise MissingDataError(f"{reader.path}: holds no images ({layout} layout); nothing to train on")
    if is_run(key_N):
        own_N = labels.image_labels(reader, offset_N, int(key_N[0]), range_I2)
    else:
        own_N = labels.own_labels(reader, offset_N)
    right_N = labels.are_labels(own_N)
    skipped = 0
    for i in np.flatnonzero(~right_N).tolist():
        try:
            record = reader.record_at(int(offset_N[i]))
        except DamagedDataError as problem:
            if damaged == "raise":
                raise
            skipped += 1
            if skipped <= 3:
                _log.warning("%s; left out", problem)
            continue
        label = record.first_label
        raise DamagedDataError(
            f"{reader.where(int(offset_N[i]), int(key_N[i]))}: label {label:g} is not {labels.RULE}; "
            f"pack the images again with identities numbered from 0"
        )
    if skipped:
        own_N, row_N = own_N[right_N], row_N[right_N]
        _log.warning("%s: left out %s of damaged records", reader.path, counted(skipped, "image"))
        if not len(row_N):
            raise MissingDataError(f"{reader.path}: every image record is damaged; get the pack again")
    if float(own_N.max()) >= labels.EXACT:
        _log.warning(
            "%s: labels of 2^24 and more are not exact in float32; identities may be merged", reader.path
        )
    label_N, class_C = labels.dense(own_N)
    arrays = {"label": label_N, "class": class_C}
    if not is_run(row_N):
        arrays["row"] = row_N
    return arrays, {"layout": layout, "first_row": int(row_N[0]), "skipped": skipped}


def _images(reader: RecordReader) -> tuple[Layout, np.ndarray, np.ndarray]:
    """Layout, index rows of the images, and the identity records' ranges (none in the im2rec layout)."""
    no_ranges = np.empty((0, 2))
    if 0 not in reader:
        return "im2rec", np.arange(len(reader)), no_ranges
    head = reader.record_at(reader.offset(0))
    if not isinstance(head.label, tuple) or len(head.label) < 2 or len(head.payload):
        return "im2rec", np.arange(len(reader)), no_ranges
    end = head.label[0]
    if not (math.isfinite(end) and 1 <= end < 2.0**53 and end == math.floor(end)):
        raise DamagedDataError(f"{reader.where(0, 0)}: announces images 1 … {end:g} − 1; get the pack again")
    index = reader.index
    row_K = index.rows_between(int(end) - labels.slack(end).item(), 2**63)
    is_identity, range_I2 = labels.identity_ranges(reader, reader.offsets[row_K])
    identity_key = index.keys_at(row_K[is_identity])
    if len(identity_key) and abs(int(identity_key.min()) - end) <= labels.slack(end):
        end = int(identity_key.min())  # the true one, where float32 could not say it
    elif len(range_I2):
        _log.warning("%s: its identity records do not begin at key %d as record 0 says", reader.path, end)
    row_N = index.rows_between(1, int(end))
    missing = int(end) - 1 - len(row_N)
    if missing:
        _log.warning(
            "%s: record 0 announces %s, of which the index lacks %d; is the pack complete?",
            reader.path,
            counted(int(end) - 1, "image"),
            missing,
        )
    return "InsightFace", row_N, range_I2


def _usable(found: cache.Cached, records: int, damaged: OnDamage) -> bool:
    """True where cached labels fit the index, and were made under a policy no laxer than this one."""
    if not {"label", "class"} <= found.arrays.keys():
        return False
    rows = found.arrays.get("row")
    last = found.values["first_row"] + len(found.arrays["label"]) if rows is None else int(rows.max()) + 1
    return last <= records and (damaged == "skip" or not found.values["skipped"])


def is_run(number_N: np.ndarray) -> bool:
    """True where the numbers are n, n + 1, n + 2, …"""
    return bool((np.diff(number_N) == 1).all())


# Names -----------------------------------------------------------------------------------------------------


class Listing:
    """The names in a `.lst`, lines of ``key<TAB>label<TAB>relative path``; 16 bytes of memory per line.

    Args:
        path: the file; of two lines of one key the last counts.

    Raises:
        DamagedDataError: naming the line that is not key, label, path, or whose path is absolute or leads out
            of its folder, for files will be written by these names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        keys, offsets = array("q"), array("q")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            file.seek(0)
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    key, _ = _fields(path, number, line)
                    keys.append(key)
                    offsets.append(offset)
                offset += len(line)
        order = np.argsort(np.frombuffer(keys, np.int64), kind="stable")
        self._key_N = np.frombuffer(keys, np.int64)[order]
        self._offset_N = np.frombuffer(offsets, np.int64)[order]

    def name(self, key: int) -> str | None:
        """The relative path of the image of `key`, None where there is no line for it."""
        row = int(np.searchsorted(self._key_N, key, side="right")) - 1
        if row < 0 or int(self._key_N[row]) != key:
            return None
        begin = int(self._offset_N[row])
        end = self._text.find(b"\n", begin)
        return _fields(self.path, row + 1, self._text[begin : end if end >= 0 else len(self._text)])[1]


def image_name(listing: Listing | None, key: int, label: object, encoded: bytes | memoryview) -> str:
    """The relative path of an image of a pack: of its `.lst`, else ``label/key.jpg``."""
    name = None if listing is None else listing.name(key)
    return name or f"{label}/{key}{_ending(encoded)}"


def _ending(encoded: bytes | memoryview) -> str:
    """The ending of an image file, by its first bytes."""
    start = bytes(encoded[:12])
    for ending, magic in ((".png", b"\x89PNG"), (".gif", b"GIF8"), (".bmp", b"BM")):
        if start.startswith(magic):
            return ending
    if start[8:12] == b"WEBP":
        return ".webp"
    return ".pgm" if start[:2] in (b"P5", b"P2") else ".jpg"


def _fields(path: Path, number: int, line: bytes) -> tuple[int, str]:
    """Key and path of one line."""
    fields = line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")
    try:
        right = is_number(fields[0], 18) and len(fields) > 2 and math.isfinite(float(fields[1]))
    except (ValueError, IndexError):
        right = False
    name = fields[-1]
    if not right or not name:
        raise wrong_line(path, number, "\t".join(fields), f"key<TAB>label<TAB>path; {_HINT}")
    if not stays_inside(name):
        raise DamagedDataError(f"{path}, line {number}: {name!r:.80} leads out of its folder; {_HINT}")
    return int(fields[0]), name
