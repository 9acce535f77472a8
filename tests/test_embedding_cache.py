"""Embeddings that are kept: given back for the same model, images and preprocessing, and nothing else."""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facerec import distributed, load_model
from facerec.errors import ConfigError, DamagedDataError
from facerec.evaluation.embedding import Embedded, embed_images
from facerec.evaluation.embedding_cache import EmbeddingCache
from facerec.models.model import Model
from tests.foreign_files import onnx_file, pixels, png
from tests.several import run_ranks

IMAGES = [png(one) for one in pixels(6)]


def opened(path: Path, folder: Path, **input: Any) -> Model:
    model = load_model(path, device="cpu", **input)
    model.cache = EmbeddingCache(folder, model)
    return model


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return onnx_file(tmp_path / "net.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "embeddings"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """hit or miss of each look into the cache, since the last time."""
    words = [one.getMessage() for one in caplog.records if one.getMessage().startswith("embedding cache: ")]
    caplog.clear()
    return [word.split()[2].rstrip(",") for word in words]


def same(one: Embedded, other: Embedded) -> bool:
    assert one.mirrored_PD is not None and other.mirrored_PD is not None
    return np.array_equal(one.plain_PD, other.plain_PD) and np.array_equal(one.mirrored_PD, other.mirrored_PD)


def test_the_second_time_nothing_is_embedded(
    network: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    first = embed_images(opened(network, folder), IMAGES, name="lfw")
    assert said(caplog) == ["miss"]
    again = opened(network, folder)
    monkeypatch.setattr(again, "forward", None)
    assert same(embed_images(again, IMAGES, name="lfw"), first)
    assert said(caplog) == ["hit"]
    (file,) = folder.iterdir()
    assert file.name.startswith("lfw-") and file.suffix == ".npz"


CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any]]] = {
    "another mean": ({"mean": 100.0}, {}, IMAGES),
    "other channels": ({"channels": "bgr"}, {}, IMAGES),
    "no flip": ({}, {"flip": False}, IMAGES),
    "one image more": ({}, {}, [*IMAGES, IMAGES[0]]),
    "another order": ({}, {}, IMAGES[::-1]),
    "the same cut differently": ({}, {}, [*IMAGES[:-2], IMAGES[-1], IMAGES[-2]]),
}


@pytest.mark.parametrize("change", CHANGED)
def test_whatever_embeddings_depend_on_is_looked_at(
    network: Path, folder: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    input, how, images = CHANGED[change]
    embed_images(opened(network, folder), IMAGES)
    embed_images(opened(network, folder, **input), images, **how)
    assert said(caplog) == ["miss", "miss"]


def test_batches_and_forms_do_not_matter(
    network: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    embed_images(opened(network, folder), IMAGES)
    embed_images(opened(network, folder), IMAGES, batch_size=2)
    embed_images(opened(network, folder), [np.frombuffer(one, np.uint8) for one in IMAGES])
    assert said(caplog) == ["miss", "hit", "hit"]


@pytest.mark.parametrize("numbers_at", ["net.bin", "below/numbers"])
@pytest.mark.parametrize("name", ["net.onnx", "net.pth"])
def test_another_model_and_another_file_of_its_numbers_are_noticed(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture, name: str, numbers_at: str
) -> None:
    """Independent of the name of the network, and of where below its folder the numbers lie."""
    caplog.set_level(logging.INFO)
    place = tmp_path / numbers_at
    place.parent.mkdir(exist_ok=True)
    network = onnx_file(tmp_path / "net.onnx", external=True, location=numbers_at).rename(tmp_path / name)
    first = embed_images(opened(network, folder), IMAGES)
    numbers = np.fromfile(place, np.float32)
    (2 * numbers).tofile(place)
    second = embed_images(opened(network, folder), IMAGES)
    assert said(caplog) == ["miss", "miss"]
    np.testing.assert_allclose(second.plain_PD, 2 * first.plain_PD, rtol=1e-5)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


RIGHT = np.zeros((2, 6, 8), np.float32)  # views, images, numbers


def npz(save: Callable[..., None] = np.savez, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def other_shape(content: bytes) -> bytes:
    """With the right words on it."""
    with np.load(io.BytesIO(content)) as kept:
        return npz(made_from=kept["made_from"], embeddings=RIGHT[:, :5])


def huge(content: bytes) -> bytes:
    """The embeddings' header promises terabytes."""
    header, buffer = io.BytesIO(), io.BytesIO()
    said = {"descr": "<f4", "fortran_order": False, "shape": (2, 6, 1 << 40)}
    np.lib.format.write_array_header_1_0(header, said)
    with zipfile.ZipFile(io.BytesIO(content)) as kept, zipfile.ZipFile(buffer, "w") as made:
        made.writestr("made_from.npy", kept.read("made_from.npy"))
        made.writestr("embeddings.npy", header.getvalue())
    return buffer.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "one bit flipped": flipped,
    "empty": lambda content: b"",
    "a pickle": lambda content: pickle.dumps({"embeddings": 1}),
    "embeddings of other images": other_shape,
    "embeddings of the right shape from elsewhere": lambda content: npz(embeddings=RIGHT),
    "the same from another cache": lambda content: npz(made_from=np.array("0" * 64), embeddings=RIGHT),
    "compressed": lambda content: npz(np.savez_compressed, made_from=np.array(""), embeddings=RIGHT),
    "a size that no memory holds": huge,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_again_with_a_warning(
    network: Path, folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = embed_images(opened(network, folder), IMAGES)
    (file,) = folder.iterdir()
    sound = file.read_bytes()
    file.write_bytes(DAMAGE[kind](sound))
    assert same(embed_images(opened(network, folder), IMAGES), first)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert str(file) in warning and warning.endswith("embedding again")
    assert same(embed_images(opened(network, folder), IMAGES), first)
    assert len(caplog.records) == 1, "it is sound again"


def test_a_folder_that_cannot_be_written_costs_no_numbers(
    network: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    model = opened(network, tmp_path / "file" / "below")
    assert embed_images(model, IMAGES).plain_PD.shape == (6, 8)
    assert "could not be written" in caplog.text
    with pytest.raises(ConfigError, match=r"eval\.cache=.*file: is a file; name a folder"):
        opened(network, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"eval\.cache=: is empty; name a folder, or give null"):
        EmbeddingCache("", model)


def embedded_on_ranks(folder: Path) -> None:
    """Write what each rank gets twice, what it logs, and how it fails where an image is damaged."""
    rank = distributed.rank()
    logging.basicConfig(filename=folder / f"log{rank}", format="%(message)s", level=logging.INFO, force=True)
    model = opened(folder / "net.onnx", folder / "kept")
    images = list(np.load(folder / "images.npy"))
    for turn in range(2):
        np.save(folder / f"{turn}_{rank}.npy", embed_images(model, images).summed_PD)
    with pytest.raises(DamagedDataError, match="image 5 of faces"):
        embed_images(model, [*images, b"damaged"], name="faces")


def test_of_several_processes_the_first_one_keeps_and_all_are_given(network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pixels(5))
    run_ranks(2, tmp_path, embedded_on_ranks)
    expected = embed_images(load_model(network, device="cpu"), list(pixels(5))).summed_PD
    for name in ("0_0", "0_1", "1_0", "1_1"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-5, atol=1e-6)
    looks = [line.split()[2] for line in (tmp_path / "log0").read_text().splitlines() if "cache" in line]
    assert looks == ["miss,", "hit,", "miss,"]
    assert "embedding cache" not in (tmp_path / "log1").read_text()
