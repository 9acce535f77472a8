"""Labels of large packs by identity ranges: a help, never the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facerec.packs import labels
from facerec.packs.pack import Pack
from facerec.packs.recordio import RecordReader
from tests.test_packs import write_insightface


def via_ranges(path: Path) -> np.ndarray:
    """Labels as a large pack's are found."""
    with RecordReader(path) as reader:
        row_K = reader.index.rows_between(1, 2**63)
        is_identity, range_I2 = labels.identity_ranges(reader, reader.offsets[row_K])
        image_K = row_K[~is_identity]
        first_key = int(reader.index.keys_at(image_K[:1])[0])
        return labels.image_labels(reader, reader.offsets[image_K], first_key, range_I2, large=1)


def count_headers_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the headers that each later call of `own_labels` reads."""
    read: list[int] = []
    plain = labels.own_labels

    def counting(reader: RecordReader, offset_K: np.ndarray, title: str = "") -> np.ndarray:
        read.append(len(offset_K))
        return plain(reader, offset_K, title)

    monkeypatch.setattr(labels, "own_labels", counting)
    monkeypatch.setattr(labels, "_SAMPLED", 20)
    return read


@pytest.mark.parametrize("first_key", [1, (1 << 24) - 150, (1 << 24) + 1, (1 << 25) + 3, 42_474_557])
def test_ranges_save_reading_headers_and_float32_borders_are_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_key: int
) -> None:
    """Beyond 2^24 the borders that float32 can say are off by up to 2 keys; the labels are not."""
    label_N = [float(c) for c, n in enumerate([41, 30, 1, 50, 3, 33, 2, 2, 77, 61]) for _ in range(n)]
    write_insightface(tmp_path / "a.rec", label_N, first_key=first_key)
    read = count_headers_read(monkeypatch)
    assert via_ranges(tmp_path / "a.rec").tolist() == label_N
    assert len(read) == 1 and read[0] < 100 < len(label_N)


def test_ranges_that_do_not_fit_the_images_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    label_N = [float(i // 50) for i in range(400)]
    write_insightface(tmp_path / "a.rec", label_N, ranges=[(1, 101), (101, 260), (260, 401)])
    read = count_headers_read(monkeypatch)
    assert via_ranges(tmp_path / "a.rec").tolist() == label_N
    assert read[-1] == 400
    assert "identity records do not fit its images" in caplog.text


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    first_key=st.sampled_from([1, (1 << 24) - 20, (1 << 25) + 7, (1 << 26) + 1]),
    shuffled=st.booleans(),
)
def test_whatever_the_identities_sizes_labels_are_the_images_own(
    tmp_path: Path, sizes: list[int], first_key: int, shuffled: bool
) -> None:
    label_N = [float(3 * c) for c, n in enumerate(sizes) for _ in range(n)]
    if shuffled:
        label_N = np.random.default_rng(len(label_N)).permutation(label_N).tolist()
        ranges = [(first_key + i, first_key + i + 5) for i in range(0, len(label_N), 5)]
    write_insightface(tmp_path / "a.rec", label_N, first_key=first_key, ranges=ranges if shuffled else None)
    assert via_ranges(tmp_path / "a.rec").tolist() == label_N


@pytest.mark.parametrize("images", [42_474_557 - 42_474_500, 58, 59, 60, 61])
def test_the_border_between_images_and_identities_is_found_beyond_2_to_the_24(
    tmp_path: Path, images: int
) -> None:
    """Keys of WebFace42M: record 0 cannot say a exactly. (Most images are missing here.)"""
    first_key = 42_474_500
    write_insightface(tmp_path / "a.rec", [float(i // 10) for i in range(images)], first_key=first_key)
    with RecordReader(tmp_path / "a.rec") as reader:
        pack = Pack(reader, "webface")
    assert len(pack) == images
    assert pack.key(images - 1) == first_key + images - 1
    assert pack.num_classes == -(-images // 10)
