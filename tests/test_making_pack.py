"""`facerec-data pack`: what becomes of photographs, what is said of others, what a stop leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import ConfigError, MissingDataError, StorageError, UserError
from facerec.images.align import TEMPLATE_52
from facerec.images.decode import decode
from facerec.images.detection import Face
from facerec.images.face_maker import FaceFile, FaceMaker
from facerec.making import builder
from facerec.making.from_folder import pack_folder
from facerec.packs.pack import open_pack
from tests.making import data, full_disk, image, report

PACK = ("train.rec", "train.idx", "train.lst", "property", "report.csv")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three identities with 2, 3 and 1 images, an empty folder, and files that are no images."""
    folder = tmp_path / "photographs"
    for identity, many in (("Ann", 2), ("Bob", 3), ("Cyd", 1), ("Dan", 0)):
        (folder / identity).mkdir(parents=True)
        for i in range(many):
            (folder / identity / f"{i}.jpg").write_bytes(image(10 * many + i, (160, 120)))
    (folder / "Bob" / "notes.txt").write_text("tall")
    (folder / "Bob" / "cut.jpg").write_bytes(image(7)[:700])
    (folder / "Bob" / ".hidden.jpg").write_bytes(b"")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in PACK}


def test_a_folder_becomes_a_pack_with_names_labels_and_a_report(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert data("pack", photographs, out) == 0
    pack = open_pack(out)
    assert (pack.layout, pack.num_classes, pack.label_N.tolist()) == ("InsightFace", 3, [0, 0, 1, 1, 1, 2])
    names = (out / "train.lst").read_text().splitlines()
    assert names[2] == "3\t1\tBob/0.jpg" and len(names) == 6
    assert (out / "property").read_text() == "3,112,112\n"
    said = {name: (outcome, reason) for name, outcome, reason in report(out)}
    assert said.keys() == {"Bob/cut.jpg", "Bob/notes.txt", "Dan"}
    assert all(outcome == "dropped" for outcome, _ in said.values())
    assert "its ending is not one of" in said["Bob/notes.txt"][1]
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".cache") == sorted(PACK)
    assert data("verify", out) == 0


def test_photographs_packed_without_alignment_are_said(
    photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data("pack", photographs, tmp_path / "out")
    hint = f"`facerec-data pack --align {photographs} OUT`"
    assert (
        f"images of 160×120 pixels are hardly aligned faces, which models expect; align them: {hint}"
        in caplog.text
    )
    caplog.clear()
    data("unpack", tmp_path / "out", tmp_path / "faces")
    data("pack", tmp_path / "faces", tmp_path / "again")
    assert not caplog.text


def test_images_are_what_decoding_gives_up_to_the_jpeg(photographs: Path, tmp_path: Path) -> None:
    data("pack", photographs, tmp_path / "out", "--size", "64", "--quality", "100")
    pack = open_pack(tmp_path / "out")
    wanted = decode((photographs / "Ann" / "1.jpg").read_bytes(), 64).astype(int)
    assert np.abs(decode(pack.encoded(1), 64) - wanted).max() <= 4
    assert (tmp_path / "out" / "property").read_text() == "3,64,64\n"


def test_keep_stores_bytes_of_the_right_size_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "Ann"
    folder.mkdir(parents=True)
    files = {
        "a.jpg": image(1),
        "b.png": image(2, kind="PNG"),
        "c.jpg": image(3, (113, 112)),
        "d.jpg": image(4, orientation=6),
        "e.jpg": image(5)[:-900],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    data("pack", tmp_path / "in", tmp_path / "out", "--keep")
    pack = open_pack(tmp_path / "out")
    assert [bytes(pack.encoded(i)) in files.values() for i in range(len(pack))] == [True, True, False, False]
    assert [name for name, *_ in report(tmp_path / "out")] == ["Ann/e.jpg"], "it is cut"


def test_a_image_lying_on_its_side_is_put_upright(tmp_path: Path) -> None:
    (tmp_path / "in" / "Ann").mkdir(parents=True)
    (tmp_path / "in" / "Ann" / "a.jpg").write_bytes(image(4, orientation=6))
    data("pack", tmp_path / "in", tmp_path / "out", "--quality", "100")
    lying = decode(image(4)).astype(int)
    upright = decode(open_pack(tmp_path / "out").encoded(0)).astype(int)
    assert np.abs(upright - np.rot90(lying, -1)).mean() < 2 < np.abs(upright - lying).mean()


def test_the_number_of_threads_changes_nothing(photographs: Path, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        data("pack", photographs, tmp_path / workers, "--workers", workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize("loose", [True, False])
def test_a_folder_without_folders_is_refused_and_leaves_nothing(tmp_path: Path, loose: bool) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if loose:
        (folder / "a.jpg").write_bytes(image(1))
    with pytest.raises(MissingDataError, match="loose images" if loose else "holds no folders"):
        data("pack", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_no_image_can_be_packed_there_is_a_report_and_no_pack(tmp_path: Path) -> None:
    (tmp_path / "in" / "Ann").mkdir(parents=True)
    (tmp_path / "in" / "Ann" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(MissingDataError, match=r"no image is left to pack; .*report\.csv says why"):
        data("pack", tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.csv"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        *(("--size", "8", "must be"), ("--quality", "101", "must be"), ("--workers", "0", "must be")),
        *(("--several", "drop", "needs --align"), ("--min-face", "20", "needs --align")),
    ],
)
def test_options_out_of_range_are_refused(
    photographs: Path, tmp_path: Path, option: str, value: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"{option}={value}: {said}"):
        data("pack", photographs, tmp_path / "out", option, value)
    assert not (tmp_path / "out").exists()


def test_a_pack_inside_of_its_own_folder_is_refused(photographs: Path) -> None:
    with pytest.raises(UserError, match="would be taken for an identity"):
        data("pack", photographs, photographs / "new" / "pack")
    assert not (photographs / "new").exists()


# Labels from a list, and what the detector found ----------------------------------------------------------


def test_labels_come_from_a_csv(tmp_path: Path) -> None:
    for seed, path in enumerate(("a/1.jpg", "a/2.jpg", "b/1.jpg", "3.jpg")):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(image(seed))
    (tmp_path / "l.csv").write_text('file,who\nb/1.jpg,Zoe\na/1.jpg,"Ann, B."\n3.jpg,Zoe\nnone.jpg,Zoe\n')
    assert data("pack", tmp_path / "in", tmp_path / "out", "--keep", "--labels", tmp_path / "l.csv") == 0
    pack = open_pack(tmp_path / "out")
    assert [pack.label(i) for i in range(len(pack))] == ["Ann, B.", "Zoe", "Zoe"]
    assert [bytes(pack.encoded(i)) for i in range(3)] == [image(0), image(2), image(3)]
    assert report(tmp_path / "out") == [["none.jpg", "dropped", "cannot be read: No such file or directory"]]


class TwoFaces:
    """Finds a face of 40 pixels in the middle of each photograph, and one of 20 beside it in wide ones."""

    def detect(self, image_HWC: np.ndarray) -> list[Face]:
        boxes = [(40.0, 40.0, 80.0, 84.0)] + [(0.0, 0.0, 20.0, 30.0)] * (image_HWC.shape[1] > 120)
        return [Face(box, 0.98765, TEMPLATE_52 * 0.4 + box[:2]) for box in boxes]


@pytest.mark.parametrize(
    ("settings", "wide", "narrow"),
    [
        (
            {},
            "packed,2 faces found; took the largest and most central,0.9877,40,40,80,84",
            "packed,,0.9877,40,40,80,84",
        ),
        ({"several": "drop"}, "dropped,2 faces found,0.9877,40,40,80,84", "packed,,0.9877,40,40,80,84"),
        ({"min_face": 30}, "packed,,0.9877,40,40,80,84", "packed,,0.9877,40,40,80,84"),
        ({"min_face": 50}, *["dropped,no face of 50 pixels; the largest has 40,,,,,"] * 2),
        (
            {"min_face": 50, "no_face": "crop"},
            *["packed,no face of 50 pixels; the largest has 40; cropped at the centre,,,,,"] * 2,
        ),
    ],
)
def test_the_report_has_score_and_box_of_each_face(
    tmp_path: Path, settings: dict, wide: str, narrow: str
) -> None:
    (tmp_path / "in" / "Ann").mkdir(parents=True)
    (tmp_path / "in" / "Ann" / "narrow.jpg").write_bytes(image(1, (120, 120)))
    (tmp_path / "in" / "Ann" / "wide.jpg").write_bytes(image(2, (160, 120)))
    (tmp_path / "in" / "Ann" / "x.jpg").write_bytes(b"none")
    maker = FaceMaker(detector=TwoFaces(), **settings)
    with contextlib.suppress(MissingDataError):  # where both are dropped
        pack_folder(tmp_path / "in", tmp_path / "out", maker)
    lines = (tmp_path / "out" / "report.csv").read_text().splitlines()
    assert lines[0] == "image,outcome,reason,score,left,top,right,bottom"
    assert lines[1:3] == [f"Ann/narrow.jpg,{narrow}", f"Ann/wide.jpg,{wide}"]
    assert lines[3].startswith("Ann/x.jpg,dropped,") and lines[3].endswith(",,,,,")


# Stopped half way -----------------------------------------------------------------------------------------


class StoppingMaker(FaceMaker):
    """Stops like Ctrl-C once so many photographs are made."""

    left = 10**9
    made = 0

    def make(self, encoded: bytes | memoryview) -> FaceFile:
        StoppingMaker.left -= 1
        StoppingMaker.made += 1
        if StoppingMaker.left < 0:
            raise KeyboardInterrupt
        return super().make(encoded)


def stop_after(many: int, folder: Path, out: Path, size: int = 112) -> int:
    """Return the number of photographs made."""
    StoppingMaker.left, StoppingMaker.made = many, 0
    try:
        pack_folder(folder, out, StoppingMaker(size))
    except KeyboardInterrupt:
        assert not (out / "train.rec").exists()
    return StoppingMaker.made


@pytest.mark.parametrize("after", [1, 3, 6])
@pytest.mark.parametrize("cut", [False, True])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, cut: bool
) -> None:
    monkeypatch.setattr(builder, "_EVERY", -1.0)
    stop_after(after, photographs, tmp_path / "out")
    stage = tmp_path / "out" / ".making"
    if cut and stage.exists():
        for name in ("train.rec", "train.lst"):
            with (stage / name).open("ab") as file:
                file.write(b"half a record")
    made = stop_after(10**9, photographs, tmp_path / "out")
    assert made <= 7 and (after == 1 or made < 7), "images already in are not made again"
    assert stop_after(10**9, photographs, tmp_path / "whole") == 7
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_stopped_run_starts_anew_where_folders_or_options_changed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_EVERY", -1.0)
    stop_after(4, photographs, tmp_path / "out")
    assert (tmp_path / "out" / ".making").exists()
    assert stop_after(10**9, photographs, tmp_path / "out", size=64) == 7
    (tmp_path / "out" / "train.rec").unlink()
    stop_after(4, photographs, tmp_path / "out")
    (photographs / "Ann" / "later.jpg").write_bytes(image(99))
    assert stop_after(10**9, photographs, tmp_path / "out") == 8
    assert len(open_pack(tmp_path / "out")) == 7


@pytest.mark.parametrize("planted", [".making", ".making/lock", ".making/train.rec", ".making/journal"])
def test_a_link_in_the_place_of_what_is_being_made_is_refused(
    photographs: Path, tmp_path: Path, planted: str
) -> None:
    mine, link = tmp_path / "mine", tmp_path / "out" / planted
    (mine.mkdir if planted == ".making" else mine.touch)()
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    with pytest.raises(UserError, match=f"out/{planted}: is a link or no file, and nothing of facerec-data"):
        data("pack", photographs, tmp_path / "out")
    assert mine.stat().st_size == 0 if mine.is_file() else not list(mine.iterdir())
    link.unlink()
    assert data("pack", photographs, tmp_path / "out") == 0


def test_a_builder_that_waits_comes_after_the_other(tmp_path: Path) -> None:
    out, order = tmp_path / "out", []

    def build(name: str) -> None:
        with builder.PackBuilder(out, force=True, wait=True) as one:
            order.append(f"{name} begins")
            time.sleep(0.1)
            one.add("a/1.jpg", image(1))
            one.end_identity()
            one.finish()
            order.append(f"{name} ends")

    threads = [threading.Thread(target=build, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = order[0][0]
    second = {"a": "b", "b": "a"}[first]
    assert order == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
    assert len(open_pack(out)) == 1 and not (out / ".making").exists()


def test_two_runs_at_once_are_refused(photographs: Path, tmp_path: Path) -> None:
    with (
        builder.PackBuilder(tmp_path / "out"),
        pytest.raises(UserError, match="another facerec-data is writing there"),
    ):
        data("pack", photographs, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "what was given up leaves no folder"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_killed_run_leaves_no_pack_and_the_next_one_completes_it(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    photograph = image(1, (300, 300), "PNG")
    for identity in range(16):
        (folder / f"{identity:03}").mkdir(parents=True)
        for i in range(5):
            (folder / f"{identity:03}" / f"{i}.png").write_bytes(photograph)
    program = "from facerec.cli.data import main; main()"
    command = [sys.executable, "-c", program, "pack", str(folder), str(out), "--workers", "1"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (out / ".making" / "train.lst").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(started.pid, number)
    _, said = started.communicate(timeout=30)
    assert started.returncode == status
    assert b"Traceback" not in said
    if out.exists():
        assert [path.name for path in out.iterdir()] == [".making"]
    assert data("pack", folder, out) == 0
    assert len(open_pack(out)) == 80
    assert not (out / ".making").exists()


def test_a_folder_that_takes_no_files_is_a_storage_error(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written: Not a directory"):
        data("pack", photographs, tmp_path / "file" / "out")


def test_a_full_disk_is_a_storage_error_and_leaves_no_pack(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_BUFFER", 0)
    said = r"could not be written: File too large .*; what was there before is kept"
    with full_disk(6000), pytest.raises(StorageError, match=said):
        data("pack", photographs, tmp_path / "out", "--quality", "100")
    assert not (tmp_path / "out").exists()
