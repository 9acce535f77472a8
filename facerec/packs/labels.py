"""The identity labels of a pack, read from the image records' own headers, many at a time.

In a large pack of the InsightFace layout the identity records say where each identity's images begin and
end, so that only the images at those borders need be looked at (and a sample in between): 42 million
headers are 200 GB of pages. Their keys are float32, exact to 2^24 only, while large packs have more images
than that; so the borders are taken as "about here", and the images' own labels around them decide.

Shape suffixes: N images, K records looked at, C identities.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from facerec.errors import DamagedDataError
from facerec.packs import framing
from facerec.packs.framing import HEADER
from facerec.packs.recordio import RecordReader

_log = logging.getLogger(__name__)
_BLOCK = 1 << 16  # records looked at together
_LABEL = (HEADER.size + 8) // 4  # the word, from that of the magic number, at which further labels begin
EXACT = 1 << 24  # float32 holds every integer up to here
_SAMPLED = 4096  # images inside the ranges whose own label is checked
_LARGE = 500_000  # images; below it all headers are read
RULE = "an integer of 0 or more, below 2^62"


def are_labels(label: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return True where a number is an identity's label, as `RULE` says; False for NaN."""
    label_K = np.asarray(label)
    with np.errstate(invalid="ignore"):
        return (label_K >= 0) & (label_K == np.floor(label_K)) & (label_K < 2.0**62)


def own_labels(reader: RecordReader, offset_K: np.ndarray, title: str = "reading labels") -> np.ndarray:
    """The label in each record at int64 `offset_K` (file order is fastest): float32, NaN where damaged."""
    from facerec.progress import Bar

    label_K = np.empty(len(offset_K), np.float32)
    with Bar(total=len(offset_K), desc=title, unit=" records", delay=1) as bar:
        for start in range(0, len(offset_K), _BLOCK):
            rows = slice(start, start + _BLOCK)
            label_K[rows] = _block(reader, offset_K[rows])
            bar.update(len(label_K[rows]))
    return label_K


def _block(reader: RecordReader, offset_K: np.ndarray) -> np.ndarray:
    """`own_labels` of up to `_BLOCK` records: gathered from the map, one by one where unusual."""
    magic_K, length_K, flag_K, scalar_K, first_K = _words(reader, offset_K, (0, 1, 2, 3, _LABEL))
    usual_K = (magic_K == framing.MAGIC) & (length_K < framing.LENGTH_LIMIT)
    usual_K &= length_K >= HEADER.size + 4 * flag_K.astype(np.int64)
    usual_K &= length_K <= len(reader.view) - 8 - offset_K
    label_K = np.where(flag_K > 0, first_K, scalar_K).view(np.float32)
    for k in np.flatnonzero(~usual_K).tolist():
        try:
            label_K[k] = reader.record_at(int(offset_K[k])).first_label
        except DamagedDataError:
            label_K[k] = np.nan
    return label_K


def _words(reader: RecordReader, offset_K: np.ndarray, places: Sequence[int]) -> list[np.ndarray]:
    """The uint32 words at these places of the records at `offset_K`; 0 where there can be none."""
    word_W = np.frombuffer(reader.view, "<u4", len(reader.view) // 4)
    at_K = np.where((offset_K >= 0) & (offset_K % 4 == 0), offset_K // 4, len(word_W))
    found = []
    for place in places:
        inside_K = at_K < len(word_W) - place
        found.append(np.zeros(len(at_K), np.uint32))
        found[-1][inside_K] = word_W[at_K[inside_K] + place]
    return found


def identity_ranges(reader: RecordReader, offset_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the identity records (flag 2, two labels, no image) among those at `offset_K`.

    Returns:
        bool mask over K, and float64 (number of identity records, 2): key of an identity's first image and
        of the one after its last, within the precision of float32.
    """
    magic_K, length_K, flag_K, *border = _words(reader, offset_K, (0, 1, 2, _LABEL, _LABEL + 1))
    is_K = (magic_K == framing.MAGIC) & (length_K == HEADER.size + 8) & (flag_K == 2)
    is_K &= offset_K <= len(reader.view) - HEADER.size - 16
    return is_K, np.stack([word_K[is_K].view(np.float32).astype(np.float64) for word_K in border], axis=1)


def slack(key: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The greatest error of keys kept as float32: 0 below 2^24, 1 below 2^25, 2 below 2^26, …"""
    step = np.spacing(np.asarray(key, np.float32))
    return np.where(np.asarray(key) < EXACT, 0, step // 2).astype(np.int64)


def image_labels(
    reader: RecordReader, offset_N: np.ndarray, first_key: int, range_I2: np.ndarray, large: int = _LARGE
) -> np.ndarray:
    """The own labels of images with keys first_key, first_key + 1, …, with the help of identity ranges.

    With `large` images or more, labels are read at both sides of every border of a range (as many images
    wide as float32 is unsure of) and at a sample in between, and filled in where two neighbours of these
    agree. Where two do not, the ranges are not to be trusted, and every header is read after all.

    Returns:
        float32 (N,), NaN where the record is damaged (found at the images looked at only).
    """
    count = len(offset_N)
    if count >= large and len(range_I2):
        anchor_A = _anchors(range_I2, first_key, count)
        if 2 * len(anchor_A) < count:
            label_A = own_labels(reader, offset_N[anchor_A], "reading labels at identity borders")
            inside_A = np.diff(anchor_A) > 1
            agree_A = label_A[1:] == label_A[:-1]
            if bool((agree_A | ~inside_A).all()):
                return np.repeat(label_A, np.diff(anchor_A, append=count))
            _log.warning("%s: its identity records do not fit its images; reading every header", reader.path)
    return own_labels(reader, offset_N)


def _anchors(range_I2: np.ndarray, first_key: int, count: int) -> np.ndarray:
    """Positions whose own labels are read: at both sides of every border, and evenly spread ones."""
    key_B = range_I2.ravel()
    key_B = key_B[(key_B >= 0) & (key_B < first_key + count + 2.0**29)]
    doubt_B = slack(key_B)
    position_B = key_B.astype(np.int64) - first_key
    read_N = np.zeros(count, bool)
    read_N[np.linspace(0, count - 1, _SAMPLED).astype(np.int64)] = True
    for i in range(int(doubt_B.max(initial=0)) + 1):
        for side_B in (position_B - 1 - i, position_B + i):
            read_N[side_B[(doubt_B >= i) & (side_B >= 0) & (side_B < count)]] = True
    return np.flatnonzero(read_N)


def dense(label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (integers of 0 or more) as 0 … C−1 in growing order, and those C originals; both int64."""
    wide = int(label_N.max(initial=0)) + 1
    if wide > 4 * len(label_N) + EXACT:  # a few huge labels: sorting is cheaper than counting
        class_C, dense_N = np.unique(label_N, return_inverse=True)
        return dense_N.astype(np.int64), class_C.astype(np.int64)
    original_N = label_N.astype(np.int64)
    present = np.zeros(wide, bool)
    present[original_N] = True
    return (np.cumsum(present) - 1)[original_N], np.flatnonzero(present)
