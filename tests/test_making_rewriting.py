"""`facerec-data repair`, `filter`, `merge`, `split`, `unpack` and the sheet of `info`: what packs become."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from PIL import Image

from facerec.errors import DamagedDataError, FacerecError, MissingDataError, UserError
from facerec.making.audit import audit
from facerec.making.rewriting import plain_name, repair
from facerec.packs.pack import Pack, open_pack
from facerec.packs.recordio import Record, RecordWriter
from tests.making import DAMAGE, damaged_pack, data, image, overwrite, report


@pytest.fixture
def pack(golden: Path) -> Path:
    """12 images of 4 identities, three each, with names."""
    lines = [
        f"{key}\t{(key - 1) // 3}\t{['José', 'Sue', 'Kim', 'Ann'][(key - 1) // 3]}/{key}.jpg\n"
        for key in range(1, 13)
    ]
    (golden / "insightface_layout.lst").write_text("".join(lines))
    return golden / "insightface_layout.rec"


def images_by_identity(pack: Pack) -> dict[int, list[bytes]]:
    """The images of each label."""
    found: dict[int, list[bytes]] = {}
    for i, label in enumerate(pack.label_N.tolist()):
        found.setdefault(label, []).append(bytes(pack.encoded(i)))
    return found


def names(out: Path) -> list[str]:
    return [line.split("\t")[2] for line in (out / "train.lst").read_text().splitlines()]


# filter ----------------------------------------------------------------------------------------------------


def test_filter_leaves_out_listed_identities_by_label_or_name(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "drop.txt").write_text("3\n\n Sue \n")
    out = tmp_path / "out"
    assert data("filter", pack, out, "--drop", tmp_path / "drop.txt") == 0
    old = images_by_identity(open_pack(pack))
    assert images_by_identity(open_pack(out)) == {0: old[0], 1: old[2]}
    assert names(out) == ["José/1.jpg", "José/2.jpg", "José/3.jpg", "Kim/7.jpg", "Kim/8.jpg", "Kim/9.jpg"]
    assert [(name, outcome) for name, outcome, _ in report(out)] == [
        ("Sue", "identity dropped"),
        ("Ann", "identity dropped"),
    ]
    assert data("verify", out) == 0


def test_filter_finds_the_identities_of_a_test_set_however_they_are_spelt(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("1\t1\nJose\t1\t2\nBob\t1\tKIM\t2\n")
    data("filter", pack, tmp_path / "out", "--overlap", tmp_path / "pairs.txt")
    assert {name.split("/")[0] for name in names(tmp_path / "out")} == {"Sue", "Ann"}
    assert plain_name("José_María Aznar") == plain_name("jose maria-aznar") != plain_name("Jose Mario Aznar")


def test_filter_by_number_of_images(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key, label in enumerate((9, 2, 9, 4, 4, 9)):
            writer.write(key, Record(0, float(label), key, 0, image(key)))
    data("filter", tmp_path / "x.rec", tmp_path / "out", "--min-images", "2")
    new = open_pack(tmp_path / "out")
    assert new.label_N.tolist() == [0, 0, 1, 1, 1], "grouped by identity, 4 before 9"
    assert names(tmp_path / "out") == ["4/3.jpg", "4/4.jpg", "9/0.jpg", "9/2.jpg", "9/5.jpg"]
    assert (tmp_path / "out" / "property").read_text() == "2,112,112\n"
    said = (
        r"no image is left to pack \(left out by --min-images 2 identities and --drop 1 identity\); .*report"
    )
    (tmp_path / "drop.txt").write_text("9\n")
    options = ["--min-images", "4", "--drop", str(tmp_path / "drop.txt")]
    with pytest.raises(MissingDataError, match=said):
        data("filter", tmp_path / "x.rec", tmp_path / "none", *options)
    assert report(tmp_path / "none")[0] == ["2", "identity dropped", "1 image, fewer than 4"]


def test_counts_of_one_are_said_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key, label in enumerate((0, 0, 1)):
            writer.write(key, Record(0, float(label), key, 0, image(key)))
    assert data("filter", tmp_path / "x.rec", tmp_path / "out", "--min-images", "2") == 0
    assert "2 images of 1 identity\n1 identity left out; " in capsys.readouterr().out
    assert data("split", tmp_path / "x.rec", f"{tmp_path / 'part'}=1") == 0
    assert "part: 3 images of 2 identities\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --min-images, --drop or --overlap"),
        (["--drop", "list"], "'Bob' and 1 more: no label or name of"),
        (["--min-images", "0"], "--min-images=0: must be 1 or more"),
        (["--drop", "/no/list"], "/no/list: No such file"),
    ],
)
def test_filter_refuses_what_makes_no_sense(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").write_text("Ann\nBob\n17\n")
    with pytest.raises(UserError, match=said):
        data("filter", pack, "out", *arguments)
    assert not Path("out").exists()


def test_an_overlap_of_names_needs_names(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("Ann")
    with pytest.raises(UserError, match=r"\.lst: there is none"):
        data("filter", golden / "insightface_layout.rec", tmp_path / "out", "--overlap", tmp_path / "names")


# merge, split ----------------------------------------------------------------------------------------------


def test_merged_packs_keep_every_identity_apart_and_every_byte(
    pack: Path, golden: Path, tmp_path: Path
) -> None:
    paths = [pack, golden / "im2rec_layout.rec", pack]
    out = tmp_path / "out"
    assert data("merge", *paths, out) == 0
    packs = [open_pack(path) for path in paths]
    wanted = [images for one in packs for _, images in sorted(images_by_identity(one).items())]
    assert list(images_by_identity(open_pack(out)).values()) == wanted
    folders = Counter(name.split("/")[0] for name in names(out))
    assert len(folders) == len(wanted), "no two identities share a folder"
    assert {"José", "insightface_layout_José", "im2rec_layout_0"} <= folders.keys()
    assert data("unpack", out, tmp_path / "files") == 0


def test_merge_says_who_is_in_two_packs(
    pack: Path, golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data("merge", pack, golden / "im2rec_layout.rec", tmp_path / "a")
    assert "im2rec_layout.rec: 6 images are in an earlier pack, too" in caplog.text
    data("merge", pack, pack, tmp_path / "b")
    assert f"{pack}: 4 identities (such as " in caplog.text
    assert "and 12 images are in an earlier pack, too, so one identity has two labels now" in caplog.text


def test_split_says_that_no_pair_can_be_drawn_from_a_part(
    pack: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data("split", pack, f"{tmp_path / 'a'}=0.75", f"{tmp_path / 'b'}=0.25")
    assert f"{tmp_path / 'b'}: no pairs can be drawn from its 1 identity" in caplog.text
    assert f"{tmp_path / 'a'}: no pairs" not in caplog.text
    with pytest.raises(UserError, match="more images are needed"):
        data("pairs", tmp_path / "b", tmp_path / "b.bin", "--folds", "1")


def test_one_pack_is_nothing_to_merge(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give two packs or more"):
        data("merge", pack, tmp_path / "out")


def test_split_parts_share_no_identity_and_lose_none(pack: Path, tmp_path: Path) -> None:
    for seed in ("0", "0", "1", "2"):
        folders = [tmp_path / f"{name}{seed}" for name in "ab"]
        arguments = [f"{folders[0]}=0.75", f"{folders[1]}=0.25", "--seed", seed, "--force"]
        assert data("split", pack, *arguments) == 0
    parts = [open_pack(folder) for folder in folders]
    assert [part.num_classes for part in parts] == [3, 1]
    together = sorted(one for part in parts for images in images_by_identity(part).values() for one in images)
    assert together == sorted(
        one for images in images_by_identity(open_pack(pack)).values() for one in images
    )
    drawn = {seed: tuple(names(tmp_path / f"b{seed}")) for seed in "012"}
    assert len(set(drawn.values())) > 1


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["a=0.9", "b=0.2"], "fractions 0.9, 0.2: must be above 0, and at most 1 in sum"),
        (["a=1", "b=0"], "must be above 0"),
        (["a=0.01"], "4 identities will not do"),
        (["a"], "must be a folder and a fraction"),
        (["a=0.5", "a=0.5"], "a folder of its own"),
    ],
)
def test_split_refuses_fractions_that_do_not_work(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        data("split", pack, *parts)
    assert not Path("a").exists() and not Path("b").exists()


# repair ----------------------------------------------------------------------------------------------------


def test_repair_keeps_all_that_is_sound_and_names_the_rest(pack: Path, tmp_path: Path) -> None:
    old = open_pack(pack)
    sound = [bytes(old.encoded(i)) for i in range(12)]
    offsets = old.offset_N.tolist()
    overwrite(pack, offsets[1], b"\0")
    overwrite(pack, offsets[7] + 1032, b"\xff\xd9" * 9)
    out = tmp_path / "out"
    assert data("repair", pack, out) == 0
    new = open_pack(out)
    assert [bytes(new.encoded(i)) for i in range(10)] == [
        one for i, one in enumerate(sound) if i not in (1, 7)
    ]
    assert new.label_N.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [place for place, *_ in report(out)] == [f"key {i + 1} at offset {offsets[i]}" for i in (1, 7)]
    assert "José/2.jpg" not in names(out) and "José/3.jpg" in names(out)
    assert data("verify", out) == 0


def test_repair_of_a_cut_pack_without_index_finds_what_is_left(pack: Path, tmp_path: Path) -> None:
    offsets = open_pack(pack).offset_N.tolist()
    pack.with_suffix(".idx").unlink()
    for cache in pack.parent.glob("*.cache"):
        cache.unlink()
    overwrite(pack, offsets[3] + 4, b"\xff\xff\xff\x1f")
    os.truncate(pack, offsets[9] + 50)
    assert data("repair", pack, tmp_path / "out") == 0
    assert len(open_pack(tmp_path / "out")) == 8


def test_a_pack_of_damage_alone_cannot_be_repaired(tmp_path: Path) -> None:
    (tmp_path / "x.rec").write_bytes(b"nothing at all, of several bytes" * 40)
    with pytest.raises(MissingDataError, match="no image is left"):
        data("repair", tmp_path / "x.rec", tmp_path / "out")
    assert not (tmp_path / "out" / "train.rec").exists()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**DAMAGE)
@example(changes=[(52, b"\0\0\0_")], cut=None, indexed=False)  # a label of 2^63
def test_a_repaired_pack_is_sound_whatever_happened(
    recordio_files: Path, tmp_path_factory: pytest.TempPathFactory, **damage: Any
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    try:
        built, *_ = repair(damaged_pack(recordio_files, folder, **damage), folder / "out")
    except FacerecError:
        assert not (folder / "out" / "train.rec").exists()
        return
    assert len(open_pack(folder / "out")) == built.images
    assert not [finding for piece in audit(folder / "out" / "train.rec") for finding in piece.findings]


# unpack ----------------------------------------------------------------------------------------------------


@pytest.fixture
def golden_rec(golden: Path) -> Path:
    """A pack without names."""
    return golden / "insightface_layout.rec"


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
    assert [path.name for path in tmp_path.iterdir()] == ["golden"]


@pytest.mark.parametrize("name", [f"{'é' * 200}/1.jpg", f"Ann/{'é' * 200}.jpg"])
def test_unpack_refuses_a_name_that_no_file_can_have(golden_rec: Path, tmp_path: Path, name: str) -> None:
    golden_rec.with_suffix(".lst").write_text(f"1\t0\t{name}\n")
    said = rf"\.lst: has a name too long for a file, {name[:20]}.*; correct it"
    with pytest.raises(UserError, match=said):
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


# Common ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["merge", "unpack"])
def test_a_killed_command_leaves_nothing(tmp_path: Path, number: signal.Signals, command: str) -> None:
    encoded = image(1)
    with RecordWriter(tmp_path / "x.rec") as writer:
        for key in range(20_000):
            writer.write(key, Record(0, float(key // 10), key, 0, encoded))
    before = sorted(tmp_path.iterdir())
    rec, out = str(tmp_path / "x.rec"), tmp_path / "out"
    arguments = {"merge": [rec, rec, str(out)], "unpack": [rec, str(out)]}[command]
    growing = {"merge": "out/.making/train.rec", "unpack": ".out.*.tmp"}[command]
    program = "from facerec.cli.data import main; main()"
    started = subprocess.Popen([sys.executable, "-c", program, command, *arguments], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(growing)) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(started.pid, number)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 128 + number and b"Traceback" not in said
    after = sorted(path for path in tmp_path.iterdir() if path.suffix != ".cache")
    assert after == before


def test_what_a_killed_command_left_is_cleared_by_the_next(pack: Path, tmp_path: Path) -> None:
    stage = tmp_path / "out" / ".making"
    stage.mkdir(parents=True)
    for name in ("train.rec", "train.idx", "ranges", "journal"):
        (stage / name).write_bytes(b"half of something" * 9)
    assert data("filter", pack, tmp_path / "out", "--min-images", "2") == 0
    assert images_by_identity(open_pack(tmp_path / "out")) == images_by_identity(open_pack(pack))
    assert not stage.exists()


def test_info_writes_a_sheet_of_the_first_identities(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "faces.png"
    assert data("info", pack, "--faces", sheet) == 0
    opened = open_pack(pack)
    many_C = np.bincount(opened.label_N)
    assert f"4 identities, up to {many_C.max()} images each, on {sheet}" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.size == (max(2, many_C.max()) * 114 + 2, 4 * 130 + 2)
        pixels = np.asarray(image).astype(int)
    for identity in range(4):
        for column, i in enumerate(np.flatnonzero(opened.label_N == identity).tolist()):
            top, left = 130 * identity + 18, 114 * column + 2
            with Image.open(io.BytesIO(bytes(opened.encoded(i)))) as face:
                assert np.abs(pixels[top : top + 112, left : left + 112] - np.asarray(face)).max() <= 1
        assert pixels[130 * identity + 2 : 130 * identity + 16].max() == 255, "its name stands above"
