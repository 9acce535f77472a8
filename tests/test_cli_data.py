"""`facerec-data`: what it says of sound packs, that it names all damage, and how it ends."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from facerec.errors import FacerecError, UserError
from facerec.making.audit import Finding, audit
from facerec.packs.recordio import RecordReader
from tests.making import DAMAGE, damaged_pack, data, overwrite
from tests.test_cli_train import failed, process


@pytest.fixture
def pack(golden: Path) -> Path:
    return golden / "insightface_layout.rec"


def offset_of(path: Path, key: int) -> int:
    with RecordReader(path) as reader:
        return reader.offset(key)


def findings(path: Path) -> list[Finding]:
    return [finding for piece in audit(path) for finding in piece.findings]


# info ------------------------------------------------------------------------------------------------------


def test_info_tells_what_a_pack_holds(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pack.parent / "property").write_text("4,112,112")
    assert data("info", pack) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert lines["file"] == f"{pack}, 72.2 kB, 17 records"
    assert lines["layout"] == "InsightFace (keys 1 … 12 are images)"
    assert lines["identities"] == "4, labels 0 … 3, no gaps"
    assert lines["images"] == "12; of one identity 3 (least), 3 (median), 3 (most)"
    assert lines["formats"] == "12 of 12 sampled: JPEG 112×112 RGB"
    assert lines["property"] == "4,112,112: agrees with the labels"
    assert lines["index"] == "insightface_layout.idx, 17 lines, keys without gaps; parsed now"


def test_info_shows_a_disagreeing_property_and_mixed_formats(
    golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (golden / "property").write_text("85742,112,112")
    data("info", golden / "im2rec_layout.rec")
    said = capsys.readouterr().out
    assert "85742,112,112: DISAGREES with the labels" in said
    assert "im2rec (every record is an image)" in said
    assert "PNG" in said and "JPEG" in said


def test_info_of_lfw_shows_how_many_images_identities_have(
    lfw_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data("info", lfw_root)
    said = capsys.readouterr().out
    assert "5,140, labels 0 … 5139, no gaps" in said
    assert "1     3,641 ########################################\n" in said
    assert "128-255         2 #\n" in said


def test_info_of_a_verification_pack_counts_pairs(lfw_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data("info", lfw_root / "lfw_set10.bin")
    said = capsys.readouterr().out
    assert "600: 300 genuine, 300 impostor" in said and "1,200, 785 of them distinct" in said


# verify ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["insightface_layout", "insightface_two_labels", "im2rec_layout"])
@pytest.mark.parametrize("indexed", [True, False], ids=["with index", "without index"])
def test_verify_of_a_sound_pack_ends_with_0(
    golden: Path, capsys: pytest.CaptureFixture[str], name: str, indexed: bool
) -> None:
    if not indexed:
        (golden / f"{name}.idx").unlink()
    before = sorted(path.name for path in golden.iterdir() if path.suffix != ".cache")
    assert data("verify", golden / f"{name}.rec") == 0
    images = {"im2rec_layout": (9, 9)}.get(name, (17, 12))
    assert f"{images[0]} records, {images[1]} images, 0 damaged" in capsys.readouterr().out
    after = sorted(path.name for path in golden.iterdir() if path.suffix != ".cache")
    assert after == before, "verifying repairs nothing"


def test_verify_of_lfw_ends_with_0(lfw_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data("verify", lfw_root) == 0
    assert "16,591 records, 11,450 images, 0 damaged" in capsys.readouterr().out


def test_verify_names_every_damaged_record_and_ends_with_1(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offsets = {key: offset_of(pack, key) for key in (2, 4, 6, 8, 10, 14)}
    overwrite(pack, offsets[2], b"\0\0\0\0")  # magic
    overwrite(pack, offsets[4] + 4, (100).to_bytes(4, "little"))  # length, too short
    overwrite(pack, offsets[6] + 8, b"\xff\xff\xff\x7f")  # flag
    overwrite(pack, offsets[8] + 12, b"\x00\x00\x80\xbf")  # label −1
    overwrite(pack, offsets[10] + 1032, b"\xff\xd9" * 9)  # its image ends too early
    overwrite(pack, offsets[14] + 4, b"\xff\xff\xff\x1f")  # length, beyond the file
    assert data("verify", pack) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.endswith(": 17 records, 9 images, 6 damaged"), "three have no header to say what they are"
    for key, said in {
        2: "bad magic number 0x00000000",
        4: "its length is wrong: it ends at",
        6: "announces 2147483647 labels",
        8: "label -1 is not an integer",
        10: "",
        14: "truncated: a part claims 536870911 bytes",
    }.items():
        (line,) = (line for line in lines if line.startswith(f"key {key} at offset {offsets[key]}: "))
        assert said in line
    assert len(lines) == 6


def test_verify_without_images_checks_the_records_only(pack: Path) -> None:
    overwrite(pack, offset_of(pack, 10) + 1032, b"\xff\xd9" * 9)
    assert data("verify", pack) == 1
    assert data("verify", pack, "--no-images") == 0


def test_verify_without_an_index_goes_on_behind_the_damage(pack: Path) -> None:
    offsets = {key: offset_of(pack, key) for key in (2, 3, 9)}
    pack.with_suffix(".idx").unlink()
    overwrite(pack, offsets[2], b"\0")
    overwrite(pack, offsets[9] + 40, b"\0" * 2000)
    found = findings(pack)
    assert [finding.where for finding in found] == [
        f"record 2 at offset {offsets[2]}",
        f"record 9 at offset {offsets[9]}",
    ]
    assert f"{offsets[3] - offsets[2]} bytes up to the next record are lost" in found[0].reason


def test_verify_of_a_cut_off_pack_names_the_first_lost_record_and_counts_the_rest(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = offset_of(pack, 9)
    os.truncate(pack, at + 100)
    found = findings(pack)
    assert found[0].where == f"key 9 at offset {at}" and "truncated" in found[0].reason
    assert found[1].where.startswith("keys 10 … 16 (7 records) at offset")
    assert len(found) == 2
    assert data("verify", pack) == 1
    assert capsys.readouterr().out.endswith(" 8 damaged\n")


def test_verify_says_when_the_index_leaves_records_out(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idx = pack.with_suffix(".idx")
    idx.write_text("".join(line for line in idx.open() if not line.startswith(("5\t", "6\t", "16\t"))))
    assert data("verify", pack) == 0
    assert "not checked, for the index does not list them: 3 records" in capsys.readouterr().out


def test_verify_names_a_malformed_index_line_and_checks_the_records_all_the_same(pack: Path) -> None:
    pack.with_suffix(".idx").write_text("0\t0\nwhat\n")
    overwrite(pack, 6776, b"\0")
    index, record = findings(pack)
    assert "line 2" in index.reason
    assert record.where == "record 3 at offset 6776"


def test_verify_leaves_another_packs_index_aside(golden: Path) -> None:
    shutil.copy(golden / "hard_payloads.idx", golden / "insightface_layout.idx")
    (only,) = findings(golden / "insightface_layout.rec")
    assert only.where == "insightface_layout.idx" and "it was left aside" in only.reason


def test_verify_names_an_index_that_gives_one_offset_to_several_keys(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idx = pack.with_suffix(".idx")
    lines = idx.read_text().splitlines()
    idx.write_text("\n".join([*lines[:4], f"4\t{lines[3].split()[1]}", *lines[5:]]))
    assert data("verify", pack) == 1
    said = capsys.readouterr().out
    assert "key 3 at offset 6776: the index gives this offset to another key, too" in said
    assert "17 records, 11 images, 1 damaged" in said
    idx.write_text("".join(f"{key}\t0\n" for key in range(17)))
    assert data("verify", pack) == 1
    said = capsys.readouterr().out
    assert ".idx: offset 0 is that of 17 of 17 keys tried; it was left aside" in said
    assert "17 records, 12 images, 1 damaged" in said


def test_verify_of_a_verification_pack_names_its_damaged_images(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RecordReader(pack) as reader:
        images = [bytes(reader.payload_at(reader.offset(key))) for key in (1, 2, 3)]
    bins = [images[0], images[1], images[2], images[2][:40]]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((bins, [True, False])))
    assert data("verify", tmp_path / "lfw.bin") == 1
    assert "4 records, 4 images, 1 damaged" in capsys.readouterr().out


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**DAMAGE)
def test_verify_finds_every_record_that_cannot_be_read(
    recordio_files: Path, tmp_path_factory: pytest.TempPathFactory, indexed: bool, **damage: Any
) -> None:
    path = damaged_pack(recordio_files, tmp_path_factory.mktemp("damaged"), indexed=indexed, **damage)
    found = findings(path)
    if found or not indexed or not path.stat().st_size:
        assert all("\n" not in f"{finding.where}{finding.reason}" for finding in found)
        return
    with RecordReader(path) as reader:
        assert all(reader[key].payload is not None for key in range(17))


# index -----------------------------------------------------------------------------------------------------


def test_index_writes_what_the_original_wrote(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    idx = pack.with_suffix(".idx")
    right = idx.read_bytes()
    idx.unlink()
    assert data("index", pack) == 0
    assert capsys.readouterr().out == f"{idx}: 17 records\n"
    assert idx.read_bytes() == right


def test_index_replaces_nothing_unless_forced_and_keeps_the_old_one(pack: Path) -> None:
    idx = pack.with_suffix(".idx")
    idx.write_text("mine")
    with pytest.raises(UserError, match="is already there; --force replaces it"):
        data("index", pack)
    assert idx.read_text() == "mine"
    assert data("index", pack, "--force") == 0
    assert len(idx.read_text().splitlines()) == 17
    assert idx.with_name(f"{idx.name}.old").read_text() == "mine"


def test_index_of_a_damaged_pack_writes_nothing(pack: Path) -> None:
    overwrite(pack, 6776, b"\0")
    before = pack.with_suffix(".idx").read_bytes()
    with pytest.raises(FacerecError, match=r"offset 6776: bad magic .* wrong keys"):
        data("index", pack, "--force")
    assert pack.with_suffix(".idx").read_bytes() == before


def test_index_can_be_written_elsewhere(pack: Path, tmp_path: Path) -> None:
    assert data("index", pack, "--output", tmp_path / "b.idx") == 0
    assert (tmp_path / "b.idx").read_bytes() == pack.with_suffix(".idx").read_bytes()


# How it ends -----------------------------------------------------------------------------------------------


def test_help_of_every_command_needs_no_numpy_and_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys\nfrom facerec.cli.data import run\n"
        "try:\n    run(['--help'])\nfinally:\n    assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert time.perf_counter() - start < 5
    assert max(map(len, ended.stdout.splitlines())) <= 100


def test_a_damaged_pack_ends_with_1_and_a_traceback_on_request_only(pack: Path) -> None:
    overwrite(pack, 0, b"\0")
    line = failed(process("facerec-data", "info", pack, cwd=pack.parent), status=1)
    assert f"key 0 at offset 0 of {pack}: bad magic number" in line
    told = process("facerec-data", "info", pack, cwd=pack.parent, FACEREC_TRACEBACK="1")
    assert "Traceback" in told.stderr
