"""The image record: a 24-byte header, labels where there are several, and the encoded image."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from facerec.errors import DamagedDataError, UserError

HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2


class Record(NamedTuple):
    """An image record.

    Attributes:
        flag: the number of labels behind the header; 0 where the header's own label counts.
        label: the header's label (float32), or the tuple of labels behind it.
        id: the first identifier, by custom the record's key.
        id2: the second identifier.
        payload: the encoded image.
    """

    flag: int
    label: float | tuple[float, ...]
    id: int
    id2: int
    payload: bytes | memoryview


def pack(record: Record) -> bytes:
    """The bytes of an image record. As in the original, `label` decides: a number is written with flag 0, a
    sequence with its length as flag; `record.flag` is not looked at.

    Raises:
        UserError: where a field does not fit its type (float32 label, uint64 id and id2).
    """
    several = not isinstance(record.label, int | float | np.number)
    labels = np.asarray(record.label, "<f4").ravel() if several else np.empty(0, "<f4")
    try:
        scalar = 0.0 if several else float(record.label)  # type: ignore[arg-type]
        header = HEADER.pack(len(labels), scalar, record.id, record.id2)
    except (struct.error, OverflowError) as problem:
        shown = f"label={record.label}, id={record.id}, id2={record.id2}"
        raise UserError(f"{shown}: does not fit an image record's header: {problem}") from None
    return b"".join((header, labels.tobytes(), record.payload))


def unpack(raw: bytes | memoryview) -> Record:
    """The image record in the bytes `raw`; its payload is a memoryview into them.

    Raises:
        DamagedDataError: where the header, or the labels it announces, go beyond `raw`.
    """
    view = memoryview(raw)
    if len(view) < HEADER.size:
        raise DamagedDataError(f"no image header: {len(view)} bytes instead of {HEADER.size} or more")
    flag, label, id_, id2 = HEADER.unpack_from(view)
    if flag == 0:
        return Record(0, label, id_, id2, view[HEADER.size :])
    begin = HEADER.size + 4 * flag
    if begin > len(view):
        raise DamagedDataError(f"its header announces {flag} labels, but the record has {len(view)} bytes")
    labels = tuple(np.frombuffer(view[HEADER.size : begin], "<f4").tolist())
    return Record(flag, labels, id_, id2, view[begin:])
