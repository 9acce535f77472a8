"""Reading RecordIO files: damage is named, never believed; readers serve threads and processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from facerec.errors import ChangedDataError, DamagedDataError, MissingDataError
from facerec.packs import framing
from facerec.packs.recordio import Record, RecordReader, RecordWriter
from tests.making import little, overwrite

MAGIC = framing.MAGIC_BYTES


# Damage ----------------------------------------------------------------------------------------------------


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
def test_a_damaged_record_is_named_with_file_key_offset_and_hint(
    golden: Path, at: int, wrong: bytes, said: str
) -> None:
    path = golden / "insightface_layout.rec"
    overwrite(path, 6776 + at, wrong)
    with RecordReader(path) as reader:
        for read in (lambda: reader[3], lambda: reader.payload_at(reader.offset(3))):
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
    overwrite(
        tmp_path / "a.rec", 12 + 4, b"\x04\x00\x00\x00"
    )  # the last part of record 0 becomes a whole record
    with RecordReader(tmp_path / "a.rec") as reader:
        with pytest.raises(
            DamagedDataError, match="part at offset 12: bad cflag sequence: cflag 0 after part 1"
        ):
            reader.raw_at(reader.offset(0))
        with pytest.raises(DamagedDataError, match="bad cflag sequence"):
            list(reader.raw_records())
        assert reader.raw_at(reader.offset(1)) == b"whole"


def test_a_claimed_length_is_never_allocated(tmp_path: Path) -> None:
    """Records and labels that claim half a gigabyte cost nothing."""
    parts = b"".join(MAGIC + (flag << 29 | 0x1FFFFFFF).to_bytes(4, "little") for flag in (1, 2, 0, 3))
    (tmp_path / "a.rec").write_bytes(parts + MAGIC + (32).to_bytes(4, "little") + b"\xff" * 32)
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{8 * key}\n" for key in range(5)))
    with RecordReader(tmp_path / "a.rec") as reader:
        assert len(reader) == 5
        with little(1 << 20):
            for key in range(5):
                for read in (reader.__getitem__, lambda key: reader.payload_at(reader.offset(key))):
                    with pytest.raises(DamagedDataError):
                        read(key)


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
