"""`facerec-embed`, and `facerec-eval` on models from elsewhere: files in, files out, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import facerec
from facerec.cli import data as facerec_data
from facerec.cli.embed import run
from facerec.errors import CheckpointError, ConfigError, DamagedDataError, MissingDataError, UserError
from facerec.evaluation import embedding, embedding_files
from facerec.packs.verification import load_verification, write_verification
from tests.foreign_files import SIZE, WIDTH, colour_file, expected, onnx_file, pixels, png, red_identities
from tests.test_cli_train import command, done, failed, process

IMAGES = pixels(7)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_file(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two identities with images, an image of nobody, and things that are no images."""
    root = tmp_path / "faces"
    names = ["ann/1.png", "ann/2.png", "bob/x/1.png", "bob/x/2.png", "bob/y.png", "loose.png", "zoe/1.png"]
    for name, image in zip(names, IMAGES, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(image))
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    return root


def listed(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "label"]
    return [(name, label) for name, label in rows]


def embed(source: Path, out: Path, network: Path, *options: str) -> np.ndarray:
    assert run([str(source), str(out), "--ckpt", str(network), "--device", "cpu", *options]) == 0
    result: np.ndarray = np.load(out, allow_pickle=False)
    return result


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Sources --------------------------------------------------------------------------------------------------


def test_a_folder_becomes_an_array_with_the_names_beside_it(
    folder: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = embed(folder, tmp_path / "out" / "faces.npy", network, "--no-flip", "--batch-size", "3")
    assert array.dtype == np.float32
    rows = listed(tmp_path / "out" / "faces.names.csv")
    order = ["ann/1.png", "ann/2.png", "bob/x/1.png", "bob/x/2.png", "bob/y.png", "loose.png", "zoe/1.png"]
    by_name = {name: row for (name, _), row in zip(rows, array, strict=True)}
    close(np.stack([by_name[name] for name in order]), expected(IMAGES))
    assert dict(rows) == {
        **{"ann/1.png": "ann", "ann/2.png": "ann", "bob/x/1.png": "bob/x", "bob/x/2.png": "bob/x"},
        **{"bob/y.png": "bob", "loose.png": "", "zoe/1.png": "zoe"},
    }
    assert "7 embeddings of 8 numbers: " in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 2, "nothing else is left"


def test_flip_and_normalise_are_what_they_say(folder: Path, network: Path, tmp_path: Path) -> None:
    plain = embed(folder, tmp_path / "plain.npy", network, "--no-flip")
    flipped = embed(folder, tmp_path / "flipped.npy", network)
    unit = embed(folder, tmp_path / "unit.npy", network, "--normalise", "--flip")
    assert not np.allclose(plain, flipped)
    close(unit, flipped / np.linalg.norm(flipped, axis=1, keepdims=True))


def test_what_does_not_fit_one_portion_is_the_same(
    folder: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embed(folder, tmp_path / "whole.npy", network)
    monkeypatch.setattr(embedding, "HELD", 3)
    monkeypatch.setattr(embedding_files, "_BLOCK", 2)
    close(embed(folder, tmp_path / "parts.npy", network), whole)
    assert listed(tmp_path / "parts.names.csv") == listed(tmp_path / "whole.names.csv")


def test_a_pack_gives_the_names_of_its_list(folder: Path, network: Path, tmp_path: Path) -> None:
    from facerec.images.face_maker import FaceMaker
    from facerec.making.from_folder import pack_folder

    pack_folder(folder, tmp_path / "pack", FaceMaker(size=SIZE, keep=True))
    array = embed(tmp_path / "pack", tmp_path / "pack.npy", network, "--no-flip")
    rows = listed(tmp_path / "pack.names.csv")
    assert rows == [("ann/1.png", "ann"), ("ann/2.png", "ann"), ("bob/y.png", "bob"), ("zoe/1.png", "zoe")]
    close(array, expected(IMAGES[[0, 1, 4, 6]]))
    again = embed(tmp_path / "pack" / "train.rec", tmp_path / "rec.npy", network, "--no-flip")
    close(again, array)


def test_rows_of_a_verification_set_can_be_judged_as_they_are(network: Path, tmp_path: Path) -> None:
    images = [png(one) for one in IMAGES]
    write_verification(tmp_path / "set.bin", [images[i] for i in (0, 1, 2, 0, 3, 3, 4, 1)], [1, 0, 1, 0])
    array = embed(tmp_path / "set.bin", tmp_path / "set.npy", network, "--no-flip")
    close(array, expected(IMAGES[[0, 1, 2, 0, 3, 3, 4, 1]]))
    rows = listed(tmp_path / "set.names.csv")
    assert rows[:3] == [("set/0/0", "1"), ("set/0/1", "1"), ("set/1/0", "0")]
    answers = load_verification(tmp_path / "set.bin").issame_N
    assert facerec.verify(array, answers, folds=2).pairs == 4


def test_a_list_names_its_images_from_where_it_lies_or_from_a_root(
    folder: Path, network: Path, tmp_path: Path
) -> None:
    (folder / "list.txt").write_text("zoe/1.png\tZoë\n\nann/1.png\n")
    array = embed(folder / "list.txt", tmp_path / "a.npy", network, "--no-flip")
    close(array, expected(IMAGES[[6, 0]]))
    assert listed(tmp_path / "a.names.csv") == [("zoe/1.png", "Zoë"), ("ann/1.png", "ann")]
    shutil.move(folder / "list.txt", tmp_path / "list.txt")
    again = embed(tmp_path / "list.txt", tmp_path / "b.npy", network, "--no-flip", "--root", str(folder))
    close(again, array)
    close(embed(folder / "loose.png", tmp_path / "c.npy", network, "--no-flip"), expected(IMAGES[5:6]))


def test_names_that_a_spreadsheet_would_run_are_text_in_every_table(
    folder: Path, network: Path, tmp_path: Path
) -> None:
    run_me = folder / "=cmd|' '!A0"
    shutil.copytree(folder / "ann", run_me)
    (run_me / "3.png").write_bytes(b"no image")
    embed(folder, tmp_path / "a.npy", network, "--on-error", "skip")
    names = [name for name, _ in listed(tmp_path / "a.names.csv")]
    assert "'=cmd|' '!A0/1.png" in names and not [one for one in names if one.startswith("=")]
    assert facerec_data.run(["pack", str(folder), str(tmp_path / "pack")]) == 0
    assert "\n'=cmd|' '!A0/3.png,dropped" in (tmp_path / "pack" / "report.csv").read_text()


def test_images_of_another_size_are_resized_and_that_is_said(
    folder: Path, network: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "ann" / "1.png").write_bytes(png(np.kron(IMAGES[0], np.ones((2, 2, 1), np.uint8))))
    caplog.set_level("INFO")
    array = embed(folder, tmp_path / "a.npy", network, "--no-flip")
    assert array.shape == (7, WIDTH)
    assert "resized and cropped: 1 image of another size" in caplog.text


def test_parquet_has_names_labels_and_embeddings(folder: Path, network: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    array = embed(folder, tmp_path / "a.npy", network)
    run([str(folder), str(tmp_path / "a.parquet"), "--ckpt", str(network)])
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["name", "label", "embedding"]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), array)
    assert list(zip(table["name"].to_pylist(), table["label"].to_pylist(), strict=True)) == listed(
        tmp_path / "a.names.csv"
    )
    assert json.loads(table.schema.metadata[b"facerec.input"])["size"] == SIZE
    assert table.schema.metadata[b"facerec.flip"] == b"true"


def test_align_finds_the_face_first(network: Path, tmp_path: Path, lfw_root: Path) -> None:
    pytest.importorskip("onnxruntime")
    from facerec.images.decode import decode
    from facerec.packs.pack import open_pack

    face = decode(open_pack(lfw_root).encoded(0))
    photograph = np.full((400, 500, 3), 90, np.uint8)
    photograph[200:312, 300:412] = face
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photograph.png").write_bytes(png(photograph))
    (tmp_path / "a" / "nobody.png").write_bytes(png(np.full((300, 300, 3), 90, np.uint8)))
    (tmp_path / "face.png").write_bytes(png(face))
    alone = embed(tmp_path / "face.png", tmp_path / "alone.npy", network, "--normalise")
    found = embed(tmp_path / "a", tmp_path / "a.npy", network, "--normalise", "--align", "--on-error", "skip")
    assert found.shape == (1, WIDTH)
    assert "no face found" in (tmp_path / "a.skipped.csv").read_text()
    assert float(found[0] @ alone[0]) > 0.7
    with pytest.raises(DamagedDataError, match=r"nobody\.png: no face found; --on-error skip"):
        embed(tmp_path / "a", tmp_path / "b.npy", network, "--align")


# Damage ---------------------------------------------------------------------------------------------------


def test_a_damaged_image_stops_the_run_or_is_listed(
    folder: Path, network: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "bob" / "y.png").write_bytes(b"no image")
    with pytest.raises(DamagedDataError, match=r"bob/y\.png: the image does not decode.*--on-error skip"):
        embed(folder, tmp_path / "a.npy", network)
    assert not (tmp_path / "a.npy").exists() and not (tmp_path / "a.names.csv").exists()
    array = embed(folder, tmp_path / "a.npy", network, "--on-error", "skip", "--no-flip")
    assert "bob/y.png" not in dict(listed(tmp_path / "a.names.csv"))
    close(array, expected(IMAGES[[5, 0, 1, 4, 2, 3, 6]])[[0, 1, 2, 4, 5, 6]])
    assert (tmp_path / "a.skipped.csv").read_text().splitlines()[1].startswith(f"{folder}/bob/y.png,")
    assert "1 image left out; " in caplog.text
    (folder / "bob" / "y.png").unlink()
    embed(folder, tmp_path / "a.npy", network, "--on-error", "skip", "--force")
    assert not (tmp_path / "a.skipped.csv").exists(), "nothing was left out this time"


def test_of_a_pair_with_a_damaged_image_both_rows_go(network: Path, tmp_path: Path) -> None:
    images = [png(IMAGES[0]), b"damaged", png(IMAGES[1]), png(IMAGES[2])]
    write_verification(tmp_path / "set.bin", images, [True, False])
    array = embed(tmp_path / "set.bin", tmp_path / "a.npy", network, "--on-error", "skip", "--no-flip")
    close(array, expected(IMAGES[[1, 2]]))
    assert listed(tmp_path / "a.names.csv") == [("set/1/0", "0"), ("set/1/1", "0")]


def test_a_list_that_names_what_is_not_there(network: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.png\n")
    with pytest.raises(MissingDataError, match=r"gone\.png cannot be read: No such file.*list\.txt"):
        embed(tmp_path / "list.txt", tmp_path / "a.npy", network)
    with pytest.raises(DamagedDataError, match=r"0 of 1 image could be embedded: .*gone"):
        embed(tmp_path / "list.txt", tmp_path / "a.npy", network, "--on-error", "skip")
    assert not (tmp_path / "a.npy").exists()


def test_mistakes_are_said_before_the_model_is_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there.names.csv").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").write_bytes(b"\0\1\2")
    for kind, message, source, out, *options in (
        (UserError, r"a\.csv: the name must end in \.npy or \.parquet", "faces", "a.csv"),
        (UserError, r"there\.names\.csv: is already there; --force replaces it", "faces", "there.npy"),
        (MissingDataError, "nowhere: no such file or folder; expected images, a pack", "nowhere", "a.npy"),
        (MissingDataError, "empty: holds no images", "empty", "a.npy"),
        (UserError, "data: is neither an image, nor a pack", "data", "a.npy"),
        (CheckpointError, r"ckpt=.*none\.onnx: no such file", "faces", "a.npy"),
        (ConfigError, "--mean=x: must be a number, or numbers with comm", "faces", "a.npy", "--mean", "x"),
        (UserError, r"--channels: invalid.*facerec-embed --help", "faces", "a.npy", "--channels", "rbg"),
    ):
        with pytest.raises(kind, match=message):
            run(
                [str(tmp_path / source), str(tmp_path / out), "--ckpt", str(tmp_path / "none.onnx"), *options]
            )


def test_settings_of_the_model_are_passed_on(folder: Path, network: Path, tmp_path: Path) -> None:
    array = embed(
        folder / "loose.png", tmp_path / "a.npy", network, "--no-flip", "--mean", "0,0,0", "--std", "255"
    )
    close(array, expected(IMAGES[5:6], mean=0, std=255))
    with pytest.raises(ConfigError, match="--batch-size=0: must be 1 or more"):
        embed(folder, tmp_path / "b.npy", network, "--batch-size", "0")


def test_without_pyarrow_the_extra_is_named(
    folder: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'facerec\[parquet\]'"):
        run([str(folder), str(tmp_path / "a.parquet"), "--ckpt", str(network)])


# As processes ---------------------------------------------------------------------------------------------


def test_help_is_quick_and_shows_an_example(tmp_path: Path) -> None:
    ended = process("facerec-embed", "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 0 and "facerec-embed photographs faces.npy --ckpt" in ended.stdout
    assert "| torch\n" not in ended.stderr and " torch\n" not in ended.stderr
    wrong = process("facerec-embed", "a", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def test_sigterm_leaves_nothing_half_made(network: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "many", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "0.png").write_bytes(png(IMAGES[0]))
    for number in range(1, 20_000):
        os.link(source / "0.png", source / f"{number}.png")
    program = Path(sys.executable).with_name("facerec-embed")
    running = subprocess.Popen(
        [program, source, out / "a.npy", "--ckpt", network, "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:  # the model is open, the images are on their way
        if line.startswith("input "):
            break
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, said
    assert not list(out.iterdir())


# facerec-eval ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_evaluation_warns_of_bgr_and_keeps_embeddings(tmp_path: Path) -> None:
    identities = red_identities()
    write_verification(
        tmp_path / "red.bin", [identities.images[i] for i in identities.index_2N], identities.issame_N
    )
    colour_file(tmp_path / "wants_bgr.pt", 2)
    settings = ["eval.targets=[red]", "eval.root=.", "eval.bootstrap=0", "eval.figures=false", "device=cpu"]
    settings += ["input.size=16", "eval.cache=kept", "output_dir=out"]
    line = failed(command("facerec-eval", "ckpt=wants_bgr.pt", *settings, cwd=tmp_path))
    assert "is TorchScript, a program" in line and "allow_code=true" in line

    settings += ["ckpt=wants_bgr.pt", "allow_code=true"]
    wrong = done("facerec-eval", *settings, cwd=tmp_path)
    log = wrong.stdout + wrong.stderr
    assert "the preprocessing looks wrong" in log and "say input.channels=bgr" in log
    assert "embedding cache: miss" in log
    accuracy = json.loads((tmp_path / "out" / "results.json").read_text())["targets"]["red"]["accuracy"]
    assert accuracy < 0.7

    right = command("facerec-eval", *settings, "input.channels=bgr", cwd=tmp_path)
    log = right.stdout + right.stderr
    assert "looks wrong" not in log and "no other common one reads clearly better" in log
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["targets"]["red"]["accuracy"] > 0.85
    assert document["preprocessing"]["channels"] == "bgr"

    again = command("facerec-eval", *settings, "input.channels=bgr", "eval.sanity=false", cwd=tmp_path)
    log = again.stdout + again.stderr
    assert "embedding cache: hit, 240 images" in log and "reads clearly better" not in log
    assert json.loads((tmp_path / "out" / "results.json").read_text())["targets"] == document["targets"]


def test_an_evaluation_takes_a_state_dict_by_the_name_of_its_backbone(tmp_path: Path) -> None:
    import torch

    identities = red_identities(20)
    write_verification(
        tmp_path / "red.bin", [identities.images[i] for i in identities.index_2N], identities.issame_N
    )
    backbone = facerec.create_backbone("mobilefacenet", embedding_size=8, input_size=32)
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "w.pth")
    settings = [
        "eval.targets=[red]",
        "eval.root=.",
        "eval.bootstrap=0",
        "eval.figures=false",
        "output_dir=out",
    ]
    settings += ["ckpt=w.pth", "input.size=32", "backbone.embedding_size=8", "eval.sanity=false"]
    done("facerec-eval", *settings, "backbone=mobilefacenet", cwd=tmp_path)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["preprocessing"]["size"] == 32
    line = failed(command("facerec-eval", *settings, "backbone=mbf", cwd=tmp_path))
    assert "ckpt=w.pth: does not fit the backbone" in line
