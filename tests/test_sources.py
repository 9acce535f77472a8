"""Sources of training images: each kind opens, is deterministic, and says what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import pickle
import socket
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from facerec.errors import ConfigError, DamagedDataError, MissingDataError
from facerec.images.augment import AugmentSettings
from facerec.images.decode import decode
from facerec.loading.folders import FolderImages
from facerec.loading.loader import Loader
from facerec.loading.opening import open_images
from facerec.loading.settings import DataSettings
from facerec.loading.sources import SOURCES, open_faces
from facerec.loading.sources.synthetic import SyntheticImages
from facerec.registry import build
from tests.making import data

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml") if path.stem != "base")


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (shade, shade, shade)).save(path)


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    """Three identities, with all sorts of other things lying about."""
    root = tmp_path / "mine"
    image(root / "Bo" / "2.png", 20)
    image(root / "Bo" / "10.JPG", 10)
    image(root / "Ada Ärger" / "a.jpeg", 30)
    image(root / "ada" / "x.webp", 40)
    image(root / "ada" / "y.bmp", 50)
    image(root / ".hidden" / "z.png", 60)
    image(root / "Bo" / "._2.png", 70)
    image(root / "loose.png", 80)
    (root / "Bo" / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    (root / "ada" / "deeper.png").mkdir()
    return root


def folder(root: Path, **options: object) -> DataSettings:
    return DataSettings(kind="folder", root=str(root), options=options)


def test_identities_are_folders_in_the_order_of_their_names(identities: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        faces = open_faces(folder(identities))
    assert faces.classes == ["Ada Ärger", "Bo", "ada"]
    assert faces.label_N.tolist() == [0, 1, 1, 2, 2]
    assert [Path(faces.where(i)).name for i in range(5)] == ["a.jpeg", "10.JPG", "2.png", "x.webp", "y.bmp"]
    assert decode(faces.encoded(2))[0, 0].tolist() == [20, 20, 20]
    assert faces.describe() == f"mine: 3 identities, 5 images, from the folders in {identities}"
    assert "left out 1 folder with too few images" in caplog.text


def test_identities_with_few_images_can_be_left_out(identities: Path) -> None:
    faces = open_faces(folder(identities, min_images=2))
    assert faces.classes == ["Bo", "ada"]
    assert faces.label_N.tolist() == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match=r"data\.options\.min_images=0: must be 1 or more"):
        open_faces(folder(identities, min_images=0))
    with pytest.raises(
        ConfigError, match=r"data\.options\.min_image=2: no such setting; did you mean min_images"
    ):
        open_faces(folder(identities, min_image=2))


def test_a_folder_that_is_something_else_is_told_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="it holds no folders"):
        open_faces(folder(tmp_path))
    (tmp_path / "train.rec").touch()
    with pytest.raises(MissingDataError, match=r"it holds a pack, use data=rec data\.root="):
        open_faces(folder(tmp_path))
    image(tmp_path / "1.png", 0)
    with pytest.raises(MissingDataError, match="loose images, move each identity's into a folder"):
        open_faces(folder(tmp_path))
    (tmp_path / "one").mkdir()
    with pytest.raises(MissingDataError, match="it holds 1 folder, none with images"):
        open_faces(folder(tmp_path))
    image(tmp_path / "one" / "1.png", 0)
    with pytest.raises(MissingDataError, match="has 1 identity; training needs two or more"):
        open_faces(folder(tmp_path))


def test_an_image_that_went_away_is_named(identities: Path) -> None:
    faces = open_faces(folder(identities))
    (identities / "Bo" / "2.png").unlink()
    with pytest.raises(DamagedDataError, match=r"Bo/2\.png cannot be read: No such file"):
        faces.encoded(2)


@pytest.fixture
def hostile(identities: Path, tmp_path: Path) -> Path:
    """Links out of the folder, to nothing and in circles, a pipe, a socket, a device, among images."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.jpg").write_text("SECRET")
    image(tmp_path / "secret" / "face.png", 1)
    for name in ("key.jpg", "face.png"):
        (identities / "Bo" / f"out {name}").symlink_to(f"../../secret/{name}")
    (identities / "Eve").symlink_to(tmp_path / "secret")
    (identities / "Bo" / "loop.png").symlink_to("loop.png")
    (identities / "Bo" / "nothing.png").symlink_to("gone.png")
    (identities / "Bo" / "zero.png").symlink_to("/dev/zero")
    (identities / "Bo" / "again.png").symlink_to("2.png")
    os.mkfifo(identities / "Bo" / "pipe.png")
    os.mkfifo(identities / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(identities / "Bo"):
        listening.bind("socket.png")
    return identities


BO = ["10.JPG", "2.png", "again.png"]  # all of Bo's that are images in the folder


def test_nothing_that_leads_out_of_a_folder_or_blocks_is_trained_on(hostile: Path, caplog) -> None:
    faces = open_faces(folder(hostile))
    assert [Path(faces.where(i)).name for i in range(len(faces))][1:4] == BO
    assert "mine: left out 9 entries, such as Eve: a link that leads out of" in caplog.text


def test_nothing_that_leads_out_of_a_folder_or_blocks_is_packed(hostile: Path, tmp_path: Path) -> None:
    assert data("pack", hostile, tmp_path / "out") == 0
    report = (tmp_path / "out" / "report.csv").read_text()
    for name in ("Eve", "Bo/out key.jpg", "Bo/out face.png", "Bo/zero.png"):
        assert f"{name},dropped,a link that leads out of" in report
    for name in ("Bo/pipe.png", "Bo/socket.png", "pipe.png"):
        assert f'{name},dropped,"no regular file' in report
    for name in ("Bo/loop.png", "Bo/nothing.png"):
        assert f"{name},dropped,a link to nothing" in report
    for file in (tmp_path / "out").iterdir():
        assert (
            b"SECRET"[:4] not in file.read_bytes()
            and b"SECRET"[:4].hex(" ").encode() not in file.read_bytes()
        )


def test_nothing_that_leads_out_of_a_folder_or_blocks_is_embedded_or_drawn(hostile: Path, caplog) -> None:
    found = open_images(hostile)
    names = [found.name(row) for row in range(len(found))]
    assert [name for name in names if name.startswith("Bo/")] == [f"Bo/{name}" for name in BO]
    assert "mine: left out 9 entries" in caplog.text
    images = FolderImages(hostile)
    assert [Path(images.where(i)) for i in range(1, 4)] == [hostile / "Bo" / name for name in BO]


@pytest.mark.parametrize("name", ["pipe.png", "zero.png", "socket.png"])
def test_what_a_list_names_is_no_file_to_wait_for(hostile: Path, name: str) -> None:
    (hostile / "list.txt").write_text(f"Bo/{name}\n")
    with pytest.raises(DamagedDataError, match="is no file"):
        open_images(hostile / "list.txt").encoded(0)


@pytest.mark.parametrize("kind", ["folder", "synthetic", "orl"])
def test_face_sets_can_be_pickled_for_other_processes(kind: str, identities: Path, tmp_path: Path) -> None:
    root = str(identities if kind == "folder" else tmp_path / "made")
    faces = open_faces(DataSettings(kind=kind, root=root))
    other = pickle.loads(pickle.dumps(faces))
    assert len(other) == len(faces)
    assert bytes(other.encoded(3)) == bytes(faces.encoded(3))


def test_synthetic_images_are_the_same_each_time_and_differ_from_each_other() -> None:
    settings = DataSettings(kind="synthetic", identities=7, images=30, size=[32, 24])
    faces, again = open_faces(settings), open_faces(settings)
    assert isinstance(faces, SyntheticImages)
    assert (len(faces), faces.num_classes) == (30, 7)
    assert np.bincount(faces.label_N).min() >= 4
    images = [faces.pixels(i) for i in range(30)]
    assert all(one.shape == (32, 24, 3) and one.dtype == np.uint8 for one in images)
    assert all(np.array_equal(one, again.pixels(i)) for i, one in enumerate(images))
    assert len({one.tobytes() for one in images}) == 30
    alike = np.abs(images[0].astype(int) - images[7]).mean()
    other = np.abs(images[0].astype(int) - images[1]).mean()
    assert alike < other / 2  # 0 and 7 are one identity


def test_synthetic_data_of_any_size_cost_no_storage() -> None:
    faces = open_faces(DataSettings(kind="synthetic", identities=85_742, images=1_000_000))
    assert len(faces) == 1_000_000
    assert faces.pixels(999_999).shape == (112, 112, 3)
    with pytest.raises(ConfigError, match=r"data\.images=5: must be data\.identities=10 or more"):
        open_faces(DataSettings(kind="synthetic", identities=10, images=5))


def test_a_missing_folder_says_what_to_get_and_what_works_now(tmp_path: Path) -> None:
    settings = DataSettings(name="ms1mv2", root=str(tmp_path / "faces_emore"), obtain="MS1MV2 of the zoo")
    with pytest.raises(MissingDataError) as caught:
        open_faces(settings)
    text = str(caught.value)
    assert f"data.root={tmp_path}/faces_emore: there is no such folder for data=ms1mv2" in text
    assert "get MS1MV2 of the zoo and put it there, or set data.root" in text
    assert "data=orl and data=synthetic work right now" in text
    with pytest.raises(ConfigError, match=r"data\.root=null: must be the folder of the data"):
        open_faces(DataSettings())


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"data\.kind=recs: no such kind; did you mean rec\? known: "):
        open_faces(DataSettings(kind="recs"))
    assert {"folder", "orl", "rec", "synthetic"} <= set(SOURCES.names())


def test_a_pack_of_another_size_than_usual_is_noticed(lfw_root: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        faces = open_faces(DataSettings(name="lfw", root=str(lfw_root), identities=5140, images=11_450))
        assert caplog.text == ""
        open_faces(DataSettings(name="lfw", root=str(lfw_root), identities=5749, images=13_233))
    assert "has 5,140 identities and 11,450 images; usual are 5,749 and 13,233" in caplog.text
    assert faces.title == "lfw"


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("size", 0, "16 to 1024"),
        ("size", [112], "16 to 1024"),
        ("workers", 0, "1 or more"),
        ("shuffle", "half", "must be one of full, block, identity, none"),
        ("on_error", "ignore", "must be one of raise, skip"),
        ("decoder", "gpu", "must be one of threads, device"),
        ("prefetch", 0, "1 or more"),
        ("block_size", -1, "1 or more"),
        ("shuffel", "full", "did you mean shuffle"),
        ("mirror", 3, "must be true or false"),
        ("augment", {"crop": 1.5}, "must be 0 to 1"),
        ("augment", {"crops": 0.5}, "did you mean crop"),
        ("augment", {"blur_sigma": 0.0}, "0 to 20 pixels"),
    ],
)
def test_settings_are_checked_before_data_are_touched(key: str, value: object, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        build(DataSettings, "data", {key: value})
    assert caught.value.key.startswith(f"data.{key}")


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_gives_valid_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREC_DATA", "/all/data")
    given = ["data.root=/some/folder"] if name in ("rec", "folder") else []
    given += ["data.sources=[{kind: folder, root: /some/folder}]"] if name == "mix" else []
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("train", [f"data={name}", *given])
    plain = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)
    settings = build(DataSettings, "data", plain)
    assert settings.kind in SOURCES.names()
    if name not in ("rec", "folder"):
        assert settings.name == name
    if settings.kind in ("rec", "orl") and name != "rec":
        assert settings.root.startswith("/all/data/")
        assert settings.targets and settings.identities


def test_the_defaults_of_the_files_are_those_of_the_settings() -> None:
    base = OmegaConf.to_container(OmegaConf.load(CONFIGS / "data" / "base.yaml"))
    assert base.pop("root") == "???"
    settings = build(DataSettings, "data", base)
    assert dataclasses.replace(settings, augment={}) == DataSettings()
    assert settings.augment == dataclasses.asdict(AugmentSettings())
    mixture = {"sources", "weights"}  # which mix.yaml has
    assert set(base) | {"root"} | mixture == set(DataSettings.__dataclass_fields__)


def test_a_photograph_in_a_folder_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    half = Image.new("RGB", (112, 112))
    half.paste((255, 255, 255), (0, 0, 112, 56))
    buffer = io.BytesIO()
    half.transpose(Image.Transpose.ROTATE_180).save(buffer, "JPEG", exif=exif)
    for identity in ("a", "b"):
        (tmp_path / identity).mkdir()
        (tmp_path / identity / "1.jpg").write_bytes(buffer.getvalue())
    (batch,) = Loader(open_faces(folder(tmp_path)), 2).batches(0)
    assert batch.image_BHWC[:, :50].min() > 250
    assert batch.image_BHWC[:, 60:].max() < 5
