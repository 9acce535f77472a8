"""Packs: both layouts, labels as the records themselves say, whatever `property` and identity records say."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facerec.errors import DamagedDataError, MissingDataError
from facerec.packs import labels
from facerec.packs.pack import Pack, Property, find_rec, open_pack, read_property
from facerec.packs.recordio import Record, RecordReader, RecordWriter
from tests.making import overwrite

INSIGHTFACE = ["insightface_layout", "insightface_two_labels"]


def write_insightface(
    path: Path,
    label_N: list[float],
    *,
    first_key: int = 1,
    exact: bool = True,
    ranges: list[tuple[int, int]] | None = None,
) -> None:
    """An InsightFace pack of tiny "images", grouped as they come; keys may begin beyond float32."""
    starts = [i for i, label in enumerate(label_N) if i == 0 or label != label_N[i - 1]]
    if ranges is None:
        ranges = [(first_key + a, first_key + b) for a, b in pairwise([*starts, len(label_N)])]
    end = first_key + len(label_N)
    with RecordWriter(path) as writer:
        writer.write(0, Record(2, (float(end), float(end + len(ranges))), 0, 0, b""))
        for key, label in enumerate(label_N, first_key):
            writer.write(key, Record(0, label, key, 0, b"image %d" % key))
        for key, (start, stop) in enumerate(ranges, end):
            writer.write(key, Record(2, (float(start), float(stop)), key, 0, b""))


def write_im2rec(path: Path, label_N: list[Any], keys: list[int] | None = None) -> None:
    with RecordWriter(path) as writer:
        for key, label in zip(keys or range(len(label_N)), label_N, strict=True):
            writer.write(key, Record(0, label, key, 0, b"image %d" % key))


# Layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSIGHTFACE)
def test_insightface_images_are_keys_one_to_a(golden: Path, name: str) -> None:
    pack = open_pack(golden / f"{name}.rec")
    manifest = json.loads((golden / "manifest.json").read_text())[name][1:13]
    assert pack.layout == "InsightFace"
    assert [pack.key(i) for i in range(len(pack))] == [entry["key"] for entry in manifest]
    own = [entry["label"][0] if isinstance(entry["label"], list) else entry["label"] for entry in manifest]
    assert pack.label_N.tolist() == own and pack.label_N.dtype == np.int64
    assert [len(pack.encoded(i)) for i in range(len(pack))] == [entry["payload_len"] for entry in manifest]
    assert pack.num_classes == 4 and pack.classes.tolist() == [0, 1, 2, 3]


def test_im2rec_images_are_all_records(golden: Path) -> None:
    pack = open_pack(golden / "im2rec_layout.rec")
    manifest = json.loads((golden / "manifest.json").read_text())["im2rec_layout"]
    assert pack.layout == "im2rec"
    assert [len(pack.encoded(i)) for i in range(len(pack))] == [entry["payload_len"] for entry in manifest]
    assert pack.classes[pack.label_N].tolist() == [int(entry["label"]) for entry in manifest]


def test_several_labels_in_im2rec_records_are_no_identity_records(tmp_path: Path) -> None:
    write_im2rec(tmp_path / "a.rec", [(4.0, 9.0), (2.0, 9.0), (4.0, 9.0)])
    pack = open_pack(tmp_path / "a.rec")
    assert pack.layout == "im2rec" and pack.label_N.tolist() == [1, 0, 1] and pack.classes.tolist() == [2, 4]


def test_the_lfw_pack_says_what_its_documentation_says(lfw_root: Path) -> None:
    pack = open_pack(lfw_root)
    assert (len(pack), pack.num_classes, pack.layout) == (11_450, 5_140, "InsightFace")
    assert pack.property == Property(5140, 112, 112)
    listed = [line.split("\t") for line in (lfw_root / "train.lst").read_text().splitlines()]
    assert pack.label_N.tolist() == [int(float(label)) for _, label, _ in listed]
    assert pack.describe() == (
        f"lfw: 5,140 identities, 11,450 images, from {lfw_root / 'train.rec'} (InsightFace layout)"
    )
    assert bytes(pack.encoded(11_449)[:2]) == b"\xff\xd8"


# Labels ----------------------------------------------------------------------------------------------------


def test_labels_with_gaps_become_dense_and_the_map_is_kept(tmp_path: Path) -> None:
    write_im2rec(tmp_path / "a.rec", [7.0, 0.0, 7.0, 85741.0])
    pack = open_pack(tmp_path / "a.rec")
    assert pack.label_N.tolist() == [1, 0, 1, 2] and pack.classes.tolist() == [0, 7, 85741]


def test_unordered_keys_keep_their_own_labels(tmp_path: Path) -> None:
    write_im2rec(tmp_path / "a.rec", [3.0, 1.0, 2.0], keys=[50, 7, 20])
    for _ in range(2):
        pack = open_pack(tmp_path / "a.rec")
        found = {pack.key(i): (int(pack.classes[pack.label_N[i]]), bytes(pack.encoded(i))) for i in range(3)}
        assert found == {50: (3, b"image 50"), 7: (1, b"image 7"), 20: (2, b"image 20")}


@pytest.mark.parametrize("label", [0.5, -1.0, 2.0**63, float("nan"), float("inf")])
def test_a_label_that_is_no_identity_names_its_key(tmp_path: Path, label: float) -> None:
    write_im2rec(tmp_path / "a.rec", [0.0, 1.0, label, 2.0], keys=[10, 20, 30, 40])
    said = f"label {label:g} is not".replace("+", r"\+")
    with pytest.raises(DamagedDataError, match=rf"key 30 at offset 80 of .*: {said}"):
        open_pack(tmp_path / "a.rec")


def test_headers_in_several_parts_give_their_labels_too(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in range(5):
            writer.write(key, Record(0, float(key // 2), 0xCED7230A, key, b"image"))
    pack = open_pack(tmp_path / "a.rec")
    assert pack.label_N.tolist() == [0, 0, 1, 1, 2]
    assert [bytes(pack.encoded(i)) for i in range(5)] == [b"image"] * 5


def test_labels_are_cached_and_the_cache_follows_the_pack(tmp_path: Path) -> None:
    write_im2rec(tmp_path / "a.rec", [0.0, 1.0])
    assert open_pack(tmp_path / "a.rec").label_N.tolist() == [0, 1]
    assert (tmp_path / "a.rec.labels.cache").is_file()
    write_im2rec(tmp_path / "a.rec", [0.0, 0.0])
    assert open_pack(tmp_path / "a.rec").label_N.tolist() == [0, 0]


# property --------------------------------------------------------------------------------------------------


def test_a_property_that_agrees_is_silent(golden: Path, caplog: pytest.LogCaptureFixture) -> None:
    (golden / "property").write_text("4,112,112\n")
    assert open_pack(golden / "insightface_layout.rec").property == Property(4, 112, 112)
    assert caplog.text == ""


def test_a_property_that_disagrees_warns_with_both_numbers(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (golden / "property").write_text("85742,112,112")
    assert open_pack(golden / "insightface_layout.rec").num_classes == 4
    assert "says 85,742 identities, the labels of insightface_layout.rec say 4" in caplog.text


@pytest.mark.parametrize("text", ["", "85742", "85742,112,112,3", "many,112,112", "\xff"])
def test_a_property_that_cannot_be_read_warns_and_the_labels_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "property").write_text(text, "latin-1")
    assert read_property(tmp_path / "property") is None
    assert "is not num_classes,height,width" in caplog.text


# What is missing or damaged --------------------------------------------------------------------------------


def test_a_missing_pack_says_what_was_expected_where(tmp_path: Path) -> None:
    with pytest.raises(
        MissingDataError, match=r"nowhere: no such file or folder; expected a \.rec, or a folder"
    ):
        open_pack(tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match=r"holds no train\.rec; put train\.rec and train\.idx there$"):
        open_pack(tmp_path)
    (tmp_path / "faces_emore").mkdir()
    (tmp_path / "faces_emore" / "train.rec").touch()
    with pytest.raises(MissingDataError, match=r"did you mean .*/faces_emore\?"):
        open_pack(tmp_path)


def test_a_folder_with_one_pack_of_another_name_is_that_pack(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(golden / "im2rec_layout.rec", tmp_path / "one" / "val.rec")
    assert find_rec(tmp_path / "one").name == "val.rec"
    with pytest.raises(MissingDataError, match=r"several packs \(hard_payloads\.rec, im2rec_layout\.rec"):
        find_rec(golden)


@pytest.mark.parametrize("label_N", [[], [(2.0, 2.0)]])
def test_a_pack_without_images_is_an_error(tmp_path: Path, label_N: list[Any]) -> None:
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, label in enumerate(label_N):
            writer.write(key, Record(0, label, key, 0, b""))
    with pytest.raises(MissingDataError, match=r"a\.rec: holds no images"):
        open_pack(tmp_path / "a.rec")


def test_images_that_record_0_announces_but_the_index_lacks_are_counted(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    idx = golden / "insightface_layout.idx"
    idx.write_text("".join(line for line in idx.open() if not line.startswith(("5\t", "7\t"))))
    pack = open_pack(golden / "insightface_layout.rec")
    assert len(pack) == 10 and pack.key(4) == 6
    assert "announces 12 images, of which the index lacks 2" in caplog.text


def spoil(path: Path, key: int) -> int:
    """Overwrite a record's magic number; returns its offset."""
    with RecordReader(path) as reader:
        offset = reader.offset(key)
    overwrite(path, offset, b"\0\0\0\0")
    return offset


def test_a_damaged_record_is_named_or_left_out_as_asked(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = golden / "insightface_layout.rec"
    offset = spoil(path, 5)
    with pytest.raises(DamagedDataError, match=f"key 5 at offset {offset} of {path}: bad magic number"):
        open_pack(path)
    for _ in range(2):  # the second time from the cache
        pack = open_pack(path, damaged="skip")
        assert [pack.key(i) for i in range(len(pack))] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
        assert pack.where(4).startswith("key 6 at offset")
    assert "left out 1 image of damaged records" in caplog.text
    with pytest.raises(DamagedDataError, match="key 5 at"):
        open_pack(path)


def test_a_record_damaged_after_opening_is_named_when_it_is_read(golden: Path) -> None:
    path = golden / "insightface_layout.rec"
    pack = open_pack(path)
    spoil(path, 5)
    with pytest.raises(DamagedDataError, match=f"key 5 at offset {pack.offset_N[4]} of {path}"):
        pack.encoded(4)


# Labels by identity ranges, in large packs: a help, never the truth ---------------------------------------


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


# Other processes -------------------------------------------------------------------------------------------


def _send_back(queue: Any, pack: Pack) -> None:
    images = b"".join(bytes(pack.encoded(i)) for i in range(len(pack)))
    queue.put((images, pack.label_N.tolist(), pack.classes.tolist(), pack.where(3), os.getpid()))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_pack_serves_other_processes(golden: Path, start: str) -> None:
    pack = open_pack(golden / "insightface_two_labels.rec")
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    worker = context.Process(target=_send_back, args=(queue, pack))
    worker.start()
    images, own, classes, where, process = queue.get(timeout=60)
    worker.join()
    assert process != os.getpid()
    assert images == b"".join(bytes(pack.encoded(i)) for i in range(len(pack)))
    assert (own, classes, where) == (pack.label_N.tolist(), pack.classes.tolist(), pack.where(3))


def test_a_pickled_pack_carries_neither_images_nor_labels(golden: Path) -> None:
    assert len(pickle.dumps(open_pack(golden / "im2rec_layout.rec"))) < 1500


def test_a_pack_pickles_whole_where_no_cache_can_be_kept(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    golden.chmod(0o555)
    try:
        pack = open_pack(golden / "im2rec_layout.rec")
        again = pickle.loads(pickle.dumps(pack))
    finally:
        golden.chmod(0o755)
    assert again.label_N.tolist() == pack.label_N.tolist() and again.encoded(2) == pack.encoded(2)
