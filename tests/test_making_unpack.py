"""`facerec-data unpack`: images out of packs, under names that stay in their folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from facerec.errors import DamagedDataError, StorageError, UserError
from facerec.packs.pack import open_pack
from facerec.packs.recordio import Record, RecordWriter
from tests.making import data, image, overwrite


@pytest.fixture
def golden_rec(recordio_files: Path, tmp_path: Path) -> Path:
    """A writable copy of a pack that the original mxnet wrote."""
    for ending in ("rec", "idx"):
        shutil.copy(recordio_files / f"insightface_layout.{ending}", tmp_path / f"golden.{ending}")
    return tmp_path / "golden.rec"


def test_unpacked_and_packed_again_is_what_mxnet_wrote(golden_rec: Path, tmp_path: Path) -> None:
    assert data("unpack", golden_rec, tmp_path / "files") == 0
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["0", "1", "2", "3"]
    for path in (tmp_path / "files").rglob("*.jpg"):  # so that names sort as keys do
        path.rename(path.with_name(f"{int(path.stem):03}.jpg"))
    data("pack", tmp_path / "files", tmp_path / "again", "--keep")
    again, pack = open_pack(tmp_path / "again"), open_pack(golden_rec)
    assert [bytes(again.encoded(i)) for i in range(12)] == [bytes(pack.encoded(i)) for i in range(12)]
    assert (tmp_path / "again" / "train.idx").read_bytes() == golden_rec.with_suffix(".idx").read_bytes()


def test_unpack_uses_the_names_of_the_lst_in_any_order(golden_rec: Path, tmp_path: Path) -> None:
    lines = [f"{key}\t0\tidentity {key % 2}/é{key}.jpg\n" for key in range(12, 0, -1) if key != 5]
    golden_rec.with_suffix(".lst").write_text("".join(lines))
    data("unpack", golden_rec, tmp_path / "out")
    pack = open_pack(golden_rec)
    assert (tmp_path / "out" / "identity 1" / "é3.jpg").read_bytes() == bytes(pack.encoded(2))
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 12, "the one without a name gets a number"


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/escaped.jpg", "a/../../b.jpg", "a\0b.jpg"])
def test_unpack_never_writes_outside_of_its_folder(golden_rec: Path, tmp_path: Path, name: str) -> None:
    golden_rec.with_suffix(".lst").write_text(f"1\t0\t{name}\n")
    with pytest.raises(DamagedDataError, match=r"line 1: .* leads out of its folder"):
        data("unpack", golden_rec, tmp_path / "out")
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".cache") == [
        ".idx",
        ".lst",
        ".rec",
    ]


@pytest.mark.parametrize("name", [f"{'é' * 200}/1.jpg", f"Ann/{'é' * 200}.jpg"])
def test_unpack_refuses_a_name_that_no_file_can_have(golden_rec: Path, tmp_path: Path, name: str) -> None:
    golden_rec.with_suffix(".lst").write_text(f"1\t0\t{name}\n")
    with pytest.raises(StorageError, match="out could not be written: File name too long"):
        data("unpack", golden_rec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpack_refuses_two_images_of_one_name_and_a_folder_in_use(golden_rec: Path, tmp_path: Path) -> None:
    golden_rec.with_suffix(".lst").write_text("1\t0\ta/b.jpg\n2\t0\ta/b.jpg\n")
    with pytest.raises(UserError, match=r"names two images a/b\.jpg"):
        data("unpack", golden_rec, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out.*"))
    golden_rec.with_suffix(".lst").unlink()
    mine = tmp_path / "out" / "0" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="is not empty; --force writes into it"):
        data("unpack", golden_rec, tmp_path / "out")
    assert data("unpack", golden_rec, tmp_path / "out", "--force") == 0
    assert mine.read_text() == "mine" and len(list((tmp_path / "out").rglob("*.jpg"))) == 12


def test_unpack_of_a_damaged_pack_writes_the_rest_and_ends_with_1(
    golden_rec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(golden_rec, int(open_pack(golden_rec).offset_N[3]), b"\0")
    assert data("unpack", golden_rec, tmp_path / "out") == 1
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 11


def test_the_im2rec_layout_is_unpacked_too(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key, label in enumerate((5, 3, 5)):
            writer.write(key, Record(0, float(label), key, 0, image(key)))
    data("unpack", tmp_path / "x.rec", tmp_path / "out")
    found = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")
    )
    assert found == ["3/1.jpg", "5/0.jpg", "5/2.jpg"]
