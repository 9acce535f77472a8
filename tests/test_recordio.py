"""RecordIO: the original's files read back, ours equal them to the byte, damage is named, never believed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facerec.errors import StorageError, UserError
from facerec.packs import framing
from facerec.packs.recordio import Record, RecordReader, RecordWriter, pack, unpack

MAGIC = framing.MAGIC_BYTES
INDEXED = ["insightface_layout", "insightface_two_labels", "im2rec_layout", "hard_payloads", "sparse_keys"]


@pytest.fixture(scope="module")
def manifest(recordio_files: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((recordio_files / "manifest.json").read_text())


def sha256(payload: bytes | memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()


def as_record(entry: dict[str, Any], payload: bytes) -> Record:
    """The record that a manifest entry describes."""
    label = tuple(entry["label"]) if isinstance(entry["label"], list) else entry["label"]
    return Record(entry["flag"], label, entry["id"], entry["id2"], payload)


# What the original wrote -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INDEXED)
def test_every_record_of_the_original_reads_back_in_sequence_without_an_index_and_by_key(
    golden: Path, manifest: dict[str, list[dict[str, Any]]], name: str
) -> None:
    idx = golden / f"{name}.idx"
    idx.rename(golden / "elsewhere")
    with RecordReader(golden / f"{name}.rec") as reader:
        found = [(sha256(record.payload), record.id) for record in reader.records()]
        assert found == [(entry["payload_sha256"], entry["id"]) for entry in manifest[name]]
        assert not idx.exists()
        (golden / "elsewhere").rename(idx)
        assert reader.keys.tolist() == [entry["key"] for entry in manifest[name]]
        for entry in manifest[name]:
            key, record = entry["key"], reader[entry["key"]]
            assert record == as_record(entry, record.payload)
            assert len(record.payload) == entry["payload_len"]
            assert sha256(record.payload) == entry["payload_sha256"]
            assert reader.payload_at(reader.offset(key)) == record.payload
            assert unpack(reader.raw_at(reader.offset(key))) == record


def test_records_without_image_headers_read_back_in_sequence(
    golden: Path, manifest: dict[str, list[dict[str, Any]]]
) -> None:
    with RecordReader(golden / "raw_sequence.rec") as reader:
        found = [sha256(raw) for _, raw in reader.raw_records()]
    assert found == [entry["payload_sha256"] for entry in manifest["raw_sequence"]]


@pytest.mark.parametrize("name", INDEXED)
def test_the_same_records_are_written_byte_for_byte_as_by_the_original(
    golden: Path, tmp_path: Path, manifest: dict[str, list[dict[str, Any]]], name: str
) -> None:
    with (
        RecordReader(golden / f"{name}.rec") as reader,
        RecordWriter(tmp_path / f"{name}.rec", tmp_path / f"{name}.idx") as writer,
    ):
        for entry in manifest[name]:
            writer.write(entry["key"], reader[entry["key"]])
    for ending in ("rec", "idx"):
        ours, theirs = (folder / f"{name}.{ending}" for folder in (tmp_path, golden))
        assert ours.read_bytes() == theirs.read_bytes()


def test_raw_records_are_written_byte_for_byte_as_by_the_original(golden: Path, tmp_path: Path) -> None:
    with RecordReader(golden / "raw_sequence.rec") as reader, RecordWriter(tmp_path / "raw.rec") as writer:
        for key, (_, raw) in enumerate(reader.raw_records()):
            writer.write(key, raw)
    assert (tmp_path / "raw.rec").read_bytes() == (golden / "raw_sequence.rec").read_bytes()


def test_the_lfw_pack_reads_in_sequence_as_by_key(lfw_root: Path) -> None:
    with RecordReader(lfw_root / "train.rec") as reader:
        assert len(reader) == 16591
        for key, (offset, raw) in enumerate(reader.raw_records()):
            assert offset == reader.offset(key)
            if key % 97 == 0:
                assert raw == reader.raw_at(reader.offset(key))


# The format's corners --------------------------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], b"\0", b"abc", b"abcd"]), max_size=12).map(
            b"".join
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_payload_survives_its_framing(payloads: list[bytes]) -> None:
    framed = memoryview(b"".join(framing.frame(payload) for payload in payloads))
    offset, found = 0, []
    for begin, end in framing.walk(framed):
        assert begin == offset and end % 4 == 0
        raw, offset = framing.assemble(framed, begin)
        assert offset == end
        found.append(bytes(raw))
    assert found == payloads
    aligned = [at for at in range(0, len(framed), 4) if framed[at : at + 4] == MAGIC]
    assert len(aligned) == sum(1 + cuts(payload) for payload in payloads), (
        "magic stands only where a part begins"
    )


def cuts(payload: bytes) -> int:
    """Count the cuts of a payload: its aligned magic numbers."""
    return sum(payload[at : at + 4] == MAGIC for at in range(0, len(payload) - 3, 4))


def test_a_header_may_hold_the_magic_number(tmp_path: Path) -> None:
    magic = framing.MAGIC
    records = [
        Record(0, 1.0, magic, 7, b"id is the magic number"),
        Record(0, 2.0, 7, magic << 32 | magic, b"id2 is twice the magic number"),
        Record(2, (3.0, 4.0), magic, magic, MAGIC + b"everywhere" + b"\0\0" + MAGIC),
        Record(0, 5.0, magic, magic, b""),
    ]
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key, record in enumerate(records):
            writer.write(key, record)
    with RecordReader(tmp_path / "a.rec") as reader:
        assert list(reader.records()) == records == [reader[key] for key in range(4)]
        assert [bytes(reader.payload_at(reader.offset(key))) for key in range(4)] == [
            record.payload for record in records
        ]


def test_the_label_decides_the_flag_as_in_the_original() -> None:
    assert unpack(pack(Record(9, 3.0, 1, 2, b"x"))) == Record(0, 3.0, 1, 2, b"x")
    assert unpack(pack(Record(0, (3.0,), 1, 2, b"x"))) == Record(1, (3.0,), 1, 2, b"x")


def test_a_record_of_one_part_is_not_copied(golden: Path) -> None:
    with RecordReader(golden / "insightface_layout.rec") as reader:
        record = reader.raw_at(reader.offset(1))
        assert (
            record.obj is reader.view.obj and record.readonly and reader.payload_at(reader.offset(1)).readonly
        )


@pytest.mark.parametrize(
    ("key", "record", "named"),
    [
        (-1, b"", "key -1"),
        (1 << 63, b"", "key 9223372036854775808"),
        (0, Record(0, 1e39, 0, 0, b""), "label=1e\\+39"),
        (0, Record(0, 0.0, 1 << 64, 0, b""), "id=18446744073709551616"),
        (0, Record(0, 0.0, 0, -1, b""), "id2=-1"),
    ],
)
def test_what_does_not_fit_the_format_is_refused_by_name(
    tmp_path: Path, key: int, record: Any, named: str
) -> None:
    with pytest.raises(UserError, match=named), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(key, record)
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_512_mib_is_refused() -> None:
    with pytest.raises(ValueError, match="536870911"):
        framing.frame(bytes(1 << 29))


# Writing is all or nothing ---------------------------------------------------------------------------------


def test_a_key_written_twice_leaves_no_files(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "a.rec")
    for key in (3, 1, 3):
        writer.write(key, b"")
    with pytest.raises(UserError, match="key 3 was written twice"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    for name in ("a.rec", "a.idx"):
        (tmp_path / name).write_bytes(b"before")
    with pytest.raises(RuntimeError, match="on purpose"), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"half")
        raise RuntimeError("on purpose")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.rec": b"before",
        "a.idx": b"before",
    }


def test_nothing_has_the_final_name_before_close(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "a.rec")
    writer.write(0, b"one")
    assert not (tmp_path / "a.rec").exists()
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx", "a.rec"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.rec could not be written"):
        RecordWriter(tmp_path / "file" / "a.rec")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "a.rec")
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._files[0].file.fileno())
    with pytest.raises(StorageError, match="No space left"):
        for key in range(3):
            writer.write(key, bytes(1 << 20))
        writer.close()
    assert list(tmp_path.iterdir()) == []
