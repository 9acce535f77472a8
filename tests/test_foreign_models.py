"""Any model can be evaluated: weights of known backbones, ONNX, TorchScript; and what is refused, and how."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from facerec import checkpoint, create_backbone, load_model
from facerec.errors import CheckpointError, ConfigError, UserError
from facerec.evaluation.embedding import embed_pictures
from facerec.evaluation.export import export
from facerec.evaluation.loading import kind_of
from facerec.evaluation.model import Input, Model
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.verification import evaluate_set
from tests.foreign_files import (
    SIZE,
    WIDTH,
    Colour,
    colour_file,
    expected,
    onnx_file,
    pixels,
    red_people,
)

NAME = "mobilefacenet"


def close(one: Any, other: Any, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


def raw(model: Model, images: np.ndarray) -> np.ndarray:
    return model.embed(images, flip=False, normalise=False).numpy()


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(NAME, embedding_size=WIDTH).eval()


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """The same for pictures of 32×32, which is nobody's usual size."""
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
        "input": Input(mean=120.0, std=[50, 60, 70], channels="bgr", size=32).to_dict(),
        "step": 1234,
        "epoch": 5,
    }
    checkpoint.save(path, state)
    return path


# Weights of known backbones -------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda state: state,
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "in a training program's file": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_recognised_and_the_log_says_as_what(
    backbone: nn.Module, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED[kind](backbone.state_dict()), path)
    with caplog.at_level(logging.INFO):
        model = load_model(path, device="cpu")
    assert "recognised as weights of backbone=mobilefacenet" in caplog.text
    assert "does not say how pictures are prepared; taken: 112×112 rgb, (x − 127.5) / 127.5" in caplog.text
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
    assert small.input == Input(std=128.0, size=32)
    images = pixels(3, size=32)
    close(raw(small, images), raw(Model(tiny, Input(std=128.0, size=32)), images))


def test_a_lineage_that_reads_with_opencv_gets_bgr(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sphere20a.pth"
    torch.save(create_backbone("sphere20", embedding_size=4, input_size=[112, 96]).state_dict(), path)
    with caplog.at_level(logging.INFO):
        model = load_model(path, device="cpu")
    assert model.input == Input(std=128.0, channels="bgr", size=[112, 96])
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
    with pytest.raises(ConfigError, match=r"input.size=96: the weights in .* are for 112×112 pictures"):
        load_model(tmp_path / "w.pth", size=96)


def test_weights_of_nothing_known_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"fit none of the known backbones.*backbone=NAME.*iresnet50"):
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
    with pytest.raises(CheckpointError, match=rf"other\.pt: its {name} is no whole number of 0 or more"):
        load_model(tmp_path / "other.pt", device="cpu")


def test_complex_weights_are_refused_and_not_halved(ours: Path, tmp_path: Path) -> None:
    state = checkpoint.load(ours)
    weights = {name: value + 1j for name, value in state["backbone"].items()}
    checkpoint.save(tmp_path / "complex.pt", {**state, "backbone": weights})
    with pytest.raises(CheckpointError, match=r"do not fit .* complex numbers"):
        load_model(tmp_path / "complex.pt", device="cpu")


# ONNX -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("count", [1, 7])
def test_an_onnx_network_of_any_batch_size_is_fed_what_it_takes(
    tmp_path: Path, batch: int | str, count: int
) -> None:
    model = load_model(onnx_file(tmp_path / "net.onnx", batch=batch), device="cpu")
    assert model.input == Input(size=SIZE), "the size is the network's own"
    close(raw(model, pixels(count)), expected(pixels(count)))


@pytest.mark.parametrize("batch", ["N", 1])
def test_flip_and_cutting_into_batches_change_nothing_for_it(tmp_path: Path, batch: int | str) -> None:
    model = load_model(onnx_file(tmp_path / "net.onnx", batch=batch), device="cpu", mean=0, std=255)
    embedded = embed_pictures(model, list(pixels(9)), batch_size=4)
    mirrored = np.ascontiguousarray(pixels(9)[:, :, ::-1])
    close(embedded.plain_PD, expected(pixels(9), mean=0, std=255))
    close(embedded.mirrored_PD, expected(mirrored, mean=0, std=255))


def test_a_batch_size_inside_of_the_network_is_found_out(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", baked=1)
    close(raw(load_model(path, device="cpu"), pixels(5)), expected(pixels(5)))


def test_channels_last_half_precision_and_further_outputs_are_taken(tmp_path: Path) -> None:
    images = pixels(3)
    last = onnx_file(tmp_path / "last.onnx", shape=(SIZE, SIZE, 3))
    close(raw(load_model(last, device="cpu"), images), expected(images))
    half = onnx_file(tmp_path / "half.onnx", kind="FLOAT16")
    np.testing.assert_allclose(raw(load_model(half, device="cpu"), images), expected(images), atol=0.02)
    both = onnx_file(tmp_path / "both.onnx", outputs=("norm", "embedding"))
    close(raw(load_model(both, device="cpu"), images), expected(images))


def test_a_network_with_its_numbers_in_a_second_file_is_taken(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", external=True)
    assert (tmp_path / "net.bin").stat().st_size > 10_000
    close(raw(load_model(path, device="cpu"), pixels(2)), expected(pixels(2)))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"shape": (1, SIZE, SIZE)},
            r"takes image tensor\(float\) \['N', 1, 16, 16\]; a network of faces takes",
        ),
        ({"shape": (48,)}, r"takes image tensor\(float\) \['N', 48\]; a network of faces"),
        ({"kind": "INT32"}, r"takes image tensor\(int32\)"),
        ({"second_input": True}, r"takes image .*, other .*; a network of faces takes one input"),
        ({"outputs": ("norm",)}, r"gives no embeddings \(B, D\) for images \(B, 3, 16×16\)"),
    ],
)
def test_a_network_of_something_else_is_refused(tmp_path: Path, made: dict[str, Any], message: str) -> None:
    path = onnx_file(tmp_path / "net.onnx", **made)
    with pytest.raises(CheckpointError, match=rf"ckpt=.*net\.onnx: {message}"):
        load_model(path, device="cpu")


def test_a_size_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"input\.size=112: the network takes 16×16 pictures alone"):
        load_model(path, device="cpu", size=112)
    free = onnx_file(tmp_path / "free.onnx", shape=(3, "height", "width"))
    close(raw(load_model(free, device="cpu", size=SIZE), pixels(2)), expected(pixels(2)))
    with pytest.raises(CheckpointError, match=r"images \(B, 3, 112×112\): .*set input\.size"):
        load_model(free, device="cpu")


def test_what_is_no_use_for_a_network_of_its_own_is_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"backbone=ir_50: .*net.onnx brings its own network; leave it out"):
        load_model(path, device="cpu", backbone={"name": "ir_50"})
    model = load_model(path, device="cpu")
    with pytest.raises(UserError, match="keeps the precision it was exported with; leave precision at fp32"):
        model.embed(pixels(1), precision="bf16")


def test_a_file_that_is_only_called_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no network at all")
    with pytest.raises(CheckpointError, match=r"ckpt=.*net\.onnx: is damaged, or no ONNX"):
        load_model(tmp_path / "net.onnx", device="cpu")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x00")
    with pytest.raises(CheckpointError, match=r"ckpt=.*net\.onnx: onnxruntime cannot load it: "):
        load_model(tmp_path / "net.onnx", device="cpu")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ckpt=.*net\.onnx: is empty"):
        load_model(tmp_path / "net.onnx", device="cpu")


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=re.escape("pip install 'facerec[onnx]'")):
        load_model(path, device="cpu")


# TorchScript ----------------------------------------------------------------------------------------------


class Writer(nn.Module):
    """A network that does something besides: TorchScript has operators that write files."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(65)
        return image.flatten(1)[:, :8] + written.sum()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
class TestTorchScript:
    def test_nothing_of_it_runs_unless_that_is_allowed(self, tmp_path: Path) -> None:
        victim, path = tmp_path / "victim", tmp_path / "net.pt"
        torch.jit.script(Writer(str(victim))).save(str(path))
        with pytest.raises(CheckpointError, match=r"net\.pt: is TorchScript, a program.*allow_code=true"):
            load_model(path, device="cpu", size=SIZE)
        assert not victim.exists()
        load_model(path, device="cpu", size=SIZE, allow_code=True)
        assert victim.read_bytes() == b"AAAA", "the warning is no empty one"

    def test_it_gives_what_the_network_gives(self, tmp_path: Path) -> None:
        path = colour_file(tmp_path / "net.pt", 2)
        model = load_model(path, device="cpu", size=SIZE, allow_code=True)
        close(raw(model, pixels(5)), raw(Model(Colour(2), Input(size=SIZE)), pixels(5)))
        frozen = torch.jit.freeze(torch.jit.script(Colour(1).eval()))
        frozen.save(str(tmp_path / "frozen.pt"))
        model = load_model(tmp_path / "frozen.pt", device="cpu", size=SIZE, allow_code=True)
        close(raw(model, pixels(5)), raw(Model(Colour(1), Input(size=SIZE)), pixels(5)))

    def test_one_that_was_traced_with_a_batch_of_four_is_fed_fours(self, tmp_path: Path) -> None:
        class Four(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return image.reshape(4, 3, SIZE * SIZE).mean(1)

        torch.jit.trace(Four(), torch.zeros(4, 3, SIZE, SIZE)).save(str(tmp_path / "net.pt"))
        model = load_model(tmp_path / "net.pt", device="cpu", size=SIZE, allow_code=True)
        images = pixels(6)
        prepared = (images.astype(np.float32) - 127.5) / 127.5
        close(raw(model, images), prepared.mean(-1).reshape(6, -1))

    def test_pictures_it_does_not_take_are_said(self, tmp_path: Path) -> None:
        torch.jit.trace(
            nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)), torch.zeros(1, 3, 16, 16)
        ).save(str(tmp_path / "net.pt"))
        with pytest.raises(CheckpointError, match=r"images \(B, 3, 112×112\).*set input\.size"):
            load_model(tmp_path / "net.pt", device="cpu", allow_code=True)


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
    reference, result = (evaluate_set(one, red_people(40), settings) for one in (model, exported))
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
    model = Model(Colour(2), Input(mean=100.0, channels="bgr", size=SIZE), step=7)
    exported = load_model(export(model, tmp_path / "face.onnx", "onnx"), device="cpu")
    assert exported.step == 7
    same_numbers(model, exported)


def test_an_export_has_the_opset_it_was_asked_for_or_is_none(tmp_path: Path) -> None:
    import onnx

    model = Model(Colour(2), Input(size=SIZE), step=7)
    path = export(model, tmp_path / "face.onnx", "onnx", opset=20)
    assert [one.version for one in onnx.load(path).opset_import if not one.domain] == [20]
    for opset, mend in ((3, "this network cannot be written with it; opset=18"), (99, "from 1 to")):
        with pytest.raises(ConfigError, match=rf"opset={opset}: .*{mend}"):
            export(model, tmp_path / "none.onnx", "onnx", opset=opset)
    with pytest.raises(ConfigError, match="opset=17: format=safetensors has no operators"):
        export(model, tmp_path / "none.safetensors", "safetensors", opset=17)
    assert [file.name for file in tmp_path.iterdir()] == ["face.onnx"]


@pytest.mark.slow
def test_an_exported_backbone_gives_the_numbers_of_its_checkpoint(ours: Path, tmp_path: Path) -> None:
    exported = load_model(
        export(load_model(ours, device="cpu"), tmp_path / "face.onnx", "onnx"), device="cpu"
    )
    same_numbers(load_model(ours, device="cpu"), exported)
