"""RecordIO: the original's files read back, ours equal them to the byte, damage is named, never believed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facerec.errors import (
    ChangedDataError,
    DamagedDataError,
    FacerecError,
    MissingDataError,
    StorageError,
    UserError,
)
from facerec.packs import framing
from facerec.packs.recordio import Record, RecordReader, RecordWriter, pack, unpack

MAGIC = framing.MAGIC_BYTES
INDEXED = ["insightface_layout", "insightface_two_labels", "im2rec_layout", "hard_payloads", "sparse_keys"]


@pytest.fixture
def golden(recordio_files: Path, tmp_path: Path) -> Path:
    """A writable copy of the files that the original mxnet wrote."""
    return Path(shutil.copytree(recordio_files, tmp_path / "golden"))


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
def test_every_record_of_the_original_reads_back_by_key(
    golden: Path, manifest: dict[str, list[dict[str, Any]]], name: str
) -> None:
    with RecordReader(golden / f"{name}.rec") as reader:
        assert reader.keys.tolist() == [entry["key"] for entry in manifest[name]]
        for entry in manifest[name]:
            record = reader[entry["key"]]
            assert record == as_record(entry, record.payload)
            assert (len(record.payload), sha256(record.payload)) == (
                entry["payload_len"],
                entry["payload_sha256"],
            )
            assert reader.payload(entry["key"]) == record.payload
            assert unpack(reader.raw(entry["key"])) == record


@pytest.mark.parametrize("name", INDEXED)
def test_every_record_of_the_original_reads_back_in_sequence_without_an_index(
    golden: Path, manifest: dict[str, list[dict[str, Any]]], name: str
) -> None:
    (golden / f"{name}.idx").unlink()
    with RecordReader(golden / f"{name}.rec") as reader:
        found = [(sha256(record.payload), record.id) for record in reader.records()]
    assert found == [(entry["payload_sha256"], entry["id"]) for entry in manifest[name]]
    assert not (golden / f"{name}.idx").exists()


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
                assert raw == reader.raw(key)


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
    """How often a payload is cut: aligned magic numbers."""
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
        assert [bytes(reader.payload(key)) for key in range(4)] == [record.payload for record in records]


def test_the_label_decides_the_flag_as_in_the_original() -> None:
    assert unpack(pack(Record(9, 3.0, 1, 2, b"x"))) == Record(0, 3.0, 1, 2, b"x")
    assert unpack(pack(Record(0, (3.0,), 1, 2, b"x"))) == Record(1, (3.0,), 1, 2, b"x")


def test_a_record_of_one_part_is_not_copied(golden: Path) -> None:
    with RecordReader(golden / "insightface_layout.rec") as reader:
        record = reader.raw(1)
        assert record.obj is reader.view.obj and record.readonly and reader.payload(1).readonly


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


# Damage ----------------------------------------------------------------------------------------------------


def damage(path: Path, offset: int, wrong: bytes) -> None:
    """Overwrite bytes without changing the file's time, as a bad disk does."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(wrong)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("at", "wrong", "said"),
    [
        (0, b"\0\0\0\0", "bad magic number 0x00000000 instead of 0xced7230a"),
        (4, b"\xff\xff\xff\x1f", "truncated: a part claims 536870911 bytes"),
        (4, b"\x00\x01\x00\x40", "bad cflag sequence: a record begins with cflag 2"),
        (4, b"\x00\x01\x00\xe0", "bad cflag sequence: a record begins with cflag 7"),
        (4, b"\x10\x00\x00\x00", "no image header: 16 bytes instead of 24"),
        (8, b"\xff\xff\xff\xff", "announces 4294967295 labels"),
    ],
)
def test_a_damaged_record_is_named_with_file_key_offset_and_mend(
    golden: Path, at: int, wrong: bytes, said: str
) -> None:
    path = golden / "insightface_layout.rec"
    damage(path, 6776 + at, wrong)
    with RecordReader(path) as reader:
        for read in (lambda: reader[3], lambda: reader.payload(3)):
            with pytest.raises(DamagedDataError) as caught:
                read()
            message = str(caught.value)
            assert f"key 3 at offset 6776 of {path}" in message
            assert said in message
            assert f"facerec-data verify {path}" in message
        assert reader[2].id == 2 and reader[4].id == 4, "its neighbours still read"


def test_a_record_cut_off_by_the_files_end_is_damaged(golden: Path) -> None:
    path = golden / "hard_payloads.rec"
    with RecordReader(path) as reader:
        last = int(reader.keys[-1])
    os.truncate(path, path.stat().st_size - 4)
    with RecordReader(path) as reader, pytest.raises(DamagedDataError, match=f"key {last} at .*truncated"):
        reader[last]


def test_a_middle_part_that_is_missing_is_damage(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"1234" + MAGIC + b"5678")
        writer.write(1, b"whole")
    damage(
        tmp_path / "a.rec", 12 + 4, b"\x04\x00\x00\x00"
    )  # the last part of record 0 becomes a whole record
    with RecordReader(tmp_path / "a.rec") as reader:
        with pytest.raises(
            DamagedDataError, match="part at offset 12: bad cflag sequence: cflag 0 after part 1"
        ):
            reader.raw(0)
        with pytest.raises(DamagedDataError, match="bad cflag sequence"):
            list(reader.raw_records())
        assert reader.raw(1) == b"whole"


def test_a_claimed_length_is_never_allocated(tmp_path: Path) -> None:
    """Records and labels that claim half a gigabyte cost nothing."""
    parts = b"".join(MAGIC + (flag << 29 | 0x1FFFFFFF).to_bytes(4, "little") for flag in (1, 2, 0, 3))
    (tmp_path / "a.rec").write_bytes(parts + MAGIC + (32).to_bytes(4, "little") + b"\xff" * 32)
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{8 * key}\n" for key in range(5)))
    with RecordReader(tmp_path / "a.rec") as reader:
        assert len(reader) == 5
        tracemalloc.start()
        for key in range(5):
            for read in (reader.__getitem__, reader.payload):
                with pytest.raises(DamagedDataError):
                    read(key)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


Mutation = tuple[str, int, int]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "magic", "cut", "drop", "idx"]), st.integers(0, 1 << 16), st.integers(1, 255)
    ),
    min_size=1,
    max_size=6,
)


def mutate(rec: bytearray, idx: bytearray, mutation: Mutation) -> None:
    kind, place, value = mutation
    at = place % max(len(rec), 1)
    if kind == "flip" and rec:
        rec[at] ^= value
    elif kind == "magic":
        rec[at - at % 4 : at - at % 4 + 4] = MAGIC
    elif kind == "cut" and value < 64:
        del rec[at:]
    elif kind == "drop":
        del rec[at : at + value]
    elif kind == "idx" and idx:
        idx[place % len(idx)] = value


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["hard_payloads", "sparse_keys"]), changes=mutations)
def test_whatever_is_done_to_a_pack_reading_ends_in_a_record_or_a_facerec_error(
    recordio_files: Path, tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[Mutation]
) -> None:
    rec, idx = (bytearray((recordio_files / f"{name}.{ending}").read_bytes()) for ending in ("rec", "idx"))
    for change in changes:
        mutate(rec, idx, change)
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "a.rec").write_bytes(rec)
    (folder / "a.idx").write_bytes(idx)
    reads: list[Callable[[RecordReader], Any]] = [lambda reader: list(reader.records())]
    with RecordReader(folder / "a.rec") as reader:
        try:
            keys = reader.keys.tolist()
        except FacerecError:
            keys = []
        reads += [lambda reader, key=key: reader[key] for key in keys]
        reads += [lambda reader, key=key: reader.payload(key) for key in keys]
        for read in reads:
            try:
                read(reader)
            except FacerecError as error:
                assert "\n" not in str(error) and str(folder) in str(error)


# Opening, sharing, closing ---------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"none\.rec: No such file"):
        RecordReader(tmp_path / "none.rec")
    with pytest.raises(MissingDataError, match="Is a directory"):
        RecordReader(tmp_path)


def test_an_empty_file_holds_no_records(tmp_path: Path) -> None:
    RecordWriter(tmp_path / "a.rec").close()
    with RecordReader(tmp_path / "a.rec") as reader:
        assert len(reader) == 0 and list(reader.records()) == [] and 0 not in reader


def test_an_unknown_key_is_a_key_error(golden: Path) -> None:
    with RecordReader(golden / "sparse_keys.rec") as reader:
        assert list(reader) == [5, 1, 900, 42]
        assert 900 in reader and 899 not in reader and "900" not in reader
        with pytest.raises(KeyError):
            reader[899]


def test_a_closed_reader_says_so_and_leaves_its_files_alone(golden: Path) -> None:
    before = {path.name: path.read_bytes() for path in golden.iterdir()}
    reader = RecordReader(golden / "sparse_keys.rec")
    kept = reader.view[8:12]
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        len(reader)
    with pytest.raises(ValueError, match="closed"):
        reader.raw_at(0)
    assert len(bytes(kept)) == 4, "a memoryview handed out earlier still reads"
    assert {path.name: path.read_bytes() for path in golden.iterdir()} == before


def digest(reader: RecordReader) -> str:
    """One hash over every record of a reader, by key."""
    whole = hashlib.sha256()
    for key in reader.keys.tolist():
        whole.update(reader[key].payload)
    return whole.hexdigest()


def _digest_into(queue: Any, reader: RecordReader) -> None:
    queue.put(digest(reader))


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("opened", [True, False], ids=["index open", "index not open yet"])
def test_a_reader_serves_other_processes(golden: Path, start: str, opened: bool) -> None:
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    with RecordReader(golden / "hard_payloads.rec") as reader:
        if opened:
            len(reader)
        workers = [context.Process(target=_digest_into, args=(queue, reader)) for _ in range(2)]
        for worker in workers:
            worker.start()
        found = {queue.get(timeout=60) for _ in workers}
        for worker in workers:
            worker.join()
        assert found == {digest(reader)}


def test_threads_share_a_reader(golden: Path) -> None:
    reader = RecordReader(golden / "insightface_layout.rec")
    expected = digest(RecordReader(golden / "insightface_layout.rec"))
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(digest(reader) for _ in range(20))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 160


def test_a_pickled_reader_carries_no_data_and_opens_the_same_file(golden: Path) -> None:
    with RecordReader(golden / "im2rec_layout.rec") as reader:
        sent = pickle.dumps(reader)
        again = pickle.loads(sent)
        assert len(sent) < 1500
        assert digest(again) == digest(reader)


def test_a_file_that_changed_since_pickling_is_refused(golden: Path) -> None:
    path = golden / "im2rec_layout.rec"
    sent = pickle.dumps(RecordReader(path))
    path.write_bytes(path.read_bytes() + bytes(4))
    with pytest.raises(ChangedDataError, match="was changed"):
        pickle.loads(sent)


def test_prefetching_any_place_is_harmless(golden: Path) -> None:
    with RecordReader(golden / "im2rec_layout.rec") as reader:
        reader.prefetch([0, int(reader.offsets[-1]), 1 << 40, -5])
        assert len(reader[1].payload) > 0


def test_a_file_cut_short_or_overwritten_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """Through a map alone the process would be killed by SIGBUS, and a skipped image would hide it."""
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        for key in range(200):
            writer.write(key, Record(0, 0.0, key, 0, bytes([key]) * 20_000))
    content = path.read_bytes()
    for damage in (content[: len(content) // 2], bytes(len(content))):
        path.write_bytes(content)
        with RecordReader(path) as reader:
            assert bytes(reader.payload_at(reader.offset(150))) == bytes([150]) * 20_000
            with path.open("r+b") as file:
                file.write(damage)
                file.truncate(len(damage))
            for offset in reader.offsets.tolist()[110:]:
                with pytest.raises(ChangedDataError, match=r"a\.rec: was changed while it was being read"):
                    reader.payload_at(offset)


def test_a_file_that_is_touched_or_replaced_while_it_is_read_still_has_its_records(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        writer.write(0, Record(0, 0.0, 0, 0, b"first"))
    with RecordReader(path) as reader:
        os.utime(path, (0, 0))
        reader.require_unchanged()
        path.unlink()
        path.write_bytes(b"another")
        assert bytes(reader.payload_at(0)) == b"first"
