"""Any model can be evaluated: weights of known backbones, ONNX, TorchScript; and what is refused, and how."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from facerec import create_backbone, load_model
from facerec.errors import CheckpointError, ConfigError, UserError
from facerec.evaluation.protocols.verification import evaluate_set
from facerec.evaluation.settings import EvalSettings
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint
from facerec.models.export import export
from facerec.models.model import Model
from facerec.models.weights import kind_of
from tests.foreign_files import (
    SIZE,
    WIDTH,
    Colour,
    close,
    onnx_file,
    pixels,
    raw,
    red_identities,
)

NAME = "mobilefacenet"


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(NAME, embedding_size=WIDTH).eval()


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """The same for images of 32×32, which is nobody's usual size."""
    torch.manual_seed(0)
    return create_backbone(NAME, embedding_size=WIDTH, input_size=32).eval()


@pytest.fixture(scope="module")
def ours(tiny: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a training run leaves it."""
    path = tmp_path_factory.mktemp("run") / "best.pt"
    settings = {"name": NAME, "embedding_size": WIDTH, "input_size": 32, "pretrained": None, "lr_scale": 1.0}
    state = {
        "config": {"backbone": settings},
        "backbone": tiny.state_dict(),
        "input": Preprocessing(mean=120.0, std=[50, 60, 70], channels="bgr", size=32).to_dict(),
        "step": 1234,
        "epoch": 5,
    }
    checkpoint.save(path, state)
    return path


# Weights of known backbones -------------------------------------------------------------------------------


def test_weights_are_recognised_and_the_log_says_as_what(
    backbone: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    state = {f"module.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1}}, path)
    with caplog.at_level(logging.INFO):
        model = load_model(path, device="cpu")
    assert "recognised as weights of backbone=mobilefacenet" in caplog.text
    assert "does not say how images are prepared; taken: 112×112 rgb, (x − 127.5) / 127.5" in caplog.text
    images = pixels(2, size=112)
    close(raw(model, images), raw(Model(backbone), images))
    assert not model.knows_input and model.path == path


def test_safetensors_are_weights_too_whatever_their_name(backbone: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(backbone.state_dict(), tmp_path / "weights.bin")
    images = pixels(2, size=112)
    close(raw(load_model(tmp_path / "weights.bin", device="cpu"), images), raw(Model(backbone), images))


def test_a_named_backbone_takes_its_sizes_from_the_weights_and_from_what_is_asked(
    backbone: nn.Module, tiny: nn.Module, tmp_path: Path
) -> None:
    torch.save(backbone.state_dict(), tmp_path / "usual.pth")
    torch.save(tiny.state_dict(), tmp_path / "tiny.pth")
    settings = {"name": NAME, "embedding_size": 512, "input_size": None, "pretrained": None}
    usual = load_model(tmp_path / "usual.pth", device="cpu", backbone=settings)
    assert usual.input.shape == (112, 112) and raw(usual, pixels(1, size=112)).shape == (1, WIDTH)
    settings["embedding_size"] = WIDTH
    small = load_model(tmp_path / "tiny.pth", device="cpu", backbone=settings, size=32, std=128)
    assert small.input == Preprocessing(std=128.0, size=32)
    images = pixels(3, size=32)
    close(raw(small, images), raw(Model(tiny, Preprocessing(std=128.0, size=32)), images))


def test_a_lineage_that_reads_with_opencv_gets_bgr(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sphere20a.pth"
    torch.save(create_backbone("sphere20", embedding_size=4, input_size=[112, 96]).state_dict(), path)
    with caplog.at_level(logging.INFO):
        model = load_model(path, device="cpu")
    assert model.input == Preprocessing(std=128.0, channels="bgr", size=[112, 96])
    assert "112×96 bgr, (x − 127.5) / 128.0 (as usual for it; input.channels" in caplog.text
    assert load_model(path, device="cpu", channels="rgb").input.channels == "rgb"


def test_weights_of_another_backbone_are_refused_and_the_right_one_is_named(
    backbone: nn.Module, tmp_path: Path
) -> None:
    torch.save(backbone.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"ckpt=.*w\.pth: does not fit .*it fits backbone=mobilefacenet"
    ):
        load_model(tmp_path / "w.pth", backbone={"name": "mbf"})
    with pytest.raises(ConfigError, match="backbone=mobilfacenet: no such backbone; did you mean"):
        load_model(tmp_path / "w.pth", backbone={"name": "mobilfacenet"})
    with pytest.raises(ConfigError, match=r"input.size=96: the weights in .* are for 112×112 images"):
        load_model(tmp_path / "w.pth", size=96)


def test_weights_of_nothing_known_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"fit none of the known backbones.*iresnet50.*backbone=NAME"):
        load_model(tmp_path / "w.pth")


def test_a_checkpoint_of_ours_says_itself_which_backbone_it_is(ours: Path) -> None:
    model = load_model(ours, device="cpu", backbone={"name": NAME, "embedding_size": 512})
    assert model.knows_input and model.config["backbone"]["name"] == NAME
    with pytest.raises(ConfigError, match="backbone=ir_50: the checkpoint says mobilefacenet; leave it out"):
        load_model(ours, backbone={"name": "ir_50"})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"size": 1 << 40}, r"input\.size=1099511627776: must be 1 to 4096 pixels"),
        ({"size": [32, 64]}, r"input\.size=\[32, 64\], not \(32, 32\)"),
        ({"channels": "grb"}, r"input\.channels=grb: must be one of rgb, bgr"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_said_with_its_file(
    ours: Path, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    state = checkpoint.load(ours)
    checkpoint.save(tmp_path / "other.pt", {**state, "input": {**state["input"], **said}})
    with pytest.raises(CheckpointError, match=rf"other\.pt: .*{message}"):
        load_model(tmp_path / "other.pt", device="cpu")


@pytest.mark.parametrize(("name", "value"), [("step", -1), ("step", "2"), ("epoch", 2**99)])
def test_a_counter_that_counts_nothing_is_said_with_its_file(
    ours: Path, tmp_path: Path, name: str, value: Any
) -> None:
    checkpoint.save(tmp_path / "other.pt", {**checkpoint.load(ours), name: value})
    with pytest.raises(CheckpointError, match=rf"other\.pt: its {name} is no integer of 0 or more"):
        load_model(tmp_path / "other.pt", device="cpu")


# What files are, and files that are refused ---------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_and_nothing_of_it_runs(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Colour(0), "module.pt", _use_new_zipfile_serialization=zipped)
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "evil": Evil()}, "evil.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        CheckpointError, match=r"names tests\.foreign_files\.Colour, .*save the .*state_dict\(\)"
    ):
        load_model("module.pt")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(CheckpointError, match="fit none of the known backbones"),
    ):
        load_model("evil.pt")
    assert re.search(r"evil\.pt: what it holds of \w+\.mkdir is neither read nor run", caplog.text)
    assert not Path("made_by_a_pickle").exists()


def test_the_content_says_what_a_file_is_and_not_its_name(
    tmp_path: Path, tiny: nn.Module, ours: Path
) -> None:
    from safetensors.torch import save_file

    onnx_file(tmp_path / "a.onnx").rename(tmp_path / "a.pth")
    save_file(tiny.state_dict(), tmp_path / "b.pth")
    shutil.copy(ours, tmp_path / "c.onnx")
    torch.save(tiny.state_dict(), tmp_path / "d.pth", _use_new_zipfile_serialization=False)
    assert kind_of(tmp_path / "a.pth") == "onnx"
    assert kind_of(tmp_path / "b.pth") == "safetensors"
    assert kind_of(tmp_path / "c.onnx") == "checkpoint"
    assert kind_of(tmp_path / "d.pth") == "checkpoint"
    assert load_model(tmp_path / "c.onnx", device="cpu").step == 1234


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"P", b"PK\x03\x04cut", b"\x00" * 40, b"text of some length"]
)
def test_files_of_no_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ckpt=.*model: not a checkpoint, or a damaged one"):
        load_model(tmp_path / "model")


def test_a_program_of_torch_export_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/archive_format", "pt2")
    with pytest.raises(CheckpointError, match=r"torch\.export; export it to ONNX"):
        load_model(tmp_path / "net.pt2")


def test_a_missing_file_and_a_folder_are_said_with_the_models_that_are_there(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=r"none\.onnx: no such file; that folder has net\.onnx"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match=r"is a folder; name a file in it \(net\.onnx\)"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="device=gpu: must be auto, cpu"):
        load_model(tmp_path / "net.onnx", device="gpu")


def test_damaged_metadata_of_an_export_is_said(tmp_path: Path, tiny: nn.Module) -> None:
    from safetensors.torch import save_file

    save_file(tiny.state_dict(), tmp_path / "w.safetensors", {"facerec.input": "{"})
    with pytest.raises(CheckpointError, match=r"metadata facerec\.input is damaged"):
        load_model(tmp_path / "w.safetensors", backbone={"name": NAME, "embedding_size": WIDTH}, size=32)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a safetensors file, or a damaged one"):
        load_model(tmp_path / "w.safetensors")


# Exports --------------------------------------------------------------------------------------------------


def same_numbers(model: Model, exported: Model) -> None:
    settings = EvalSettings(bootstrap=0, batch_size=32, sanity=False)
    assert exported.input == model.input and exported.knows_input
    reference, result = (evaluate_set(one, red_identities(40), settings) for one in (model, exported))
    assert 0.3 < reference.accuracy < 1
    assert result.fold_accuracy == reference.fold_accuracy
    assert result.best_threshold == reference.best_threshold
    assert result.xnorm == pytest.approx(reference.xnorm, rel=1e-5)
    close(result.distance_N, reference.distance_N, rtol=1e-3)


def test_exported_weights_give_the_numbers_of_their_checkpoint(ours: Path, tmp_path: Path) -> None:
    model = load_model(ours, device="cpu")
    exported = load_model(export(model, tmp_path / "face.safetensors", "safetensors"), device="cpu")
    assert exported.step == 1234 and exported.config["backbone"]["name"] == NAME
    same_numbers(model, exported)


def test_a_preprocessing_that_was_guessed_stays_a_guess_when_it_is_exported(
    backbone: nn.Module, tmp_path: Path
) -> None:
    torch.save(backbone.state_dict(), tmp_path / "w.pth")
    guessed = load_model(tmp_path / "w.pth", device="cpu", channels="bgr")
    exported = load_model(export(guessed, tmp_path / "w.safetensors", "safetensors"), device="cpu")
    assert exported.input.channels == "bgr" and not exported.knows_input
    network = load_model(onnx_file(tmp_path / "net.onnx"), device="cpu")
    with pytest.raises(UserError, match=r"net\.onnx: brings its own network, which cannot be exported"):
        export(network, tmp_path / "again.onnx", "onnx")


def test_an_exported_network_gives_the_numbers_of_its_model(tmp_path: Path) -> None:
    model = Model(Colour(2), Preprocessing(mean=100.0, channels="bgr", size=SIZE), step=7)
    exported = load_model(export(model, tmp_path / "face.onnx", "onnx"), device="cpu")
    assert exported.step == 7
    same_numbers(model, exported)


def test_an_export_has_the_opset_it_was_asked_for_or_is_none(tmp_path: Path) -> None:
    import onnx

    model = Model(Colour(2), Preprocessing(size=SIZE), step=7)
    path = export(model, tmp_path / "face.onnx", "onnx", opset=20)
    assert [one.version for one in onnx.load(path).opset_import if not one.domain] == [20]
    for opset, hint in ((3, "this network cannot be written with it; opset=18"), (99, "from 1 to")):
        with pytest.raises(ConfigError, match=rf"opset={opset}: .*{hint}"):
            export(model, tmp_path / "none.onnx", "onnx", opset=opset)
    with pytest.raises(ConfigError, match="opset=17: format=safetensors has none; leave it out"):
        export(model, tmp_path / "none.safetensors", "safetensors", opset=17)
    assert [file.name for file in tmp_path.iterdir()] == ["face.onnx"]


@pytest.mark.slow
def test_an_exported_backbone_gives_the_numbers_of_its_checkpoint(ours: Path, tmp_path: Path) -> None:
    exported = load_model(
        export(load_model(ours, device="cpu"), tmp_path / "face.onnx", "onnx"), device="cpu"
    )
    same_numbers(load_model(ours, device="cpu"), exported)
