"""Networks that bring their own graph, ONNX and TorchScript: fed what they take, or refused with a reason."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from facerec import load_model
from facerec.errors import CheckpointError, ConfigError, UserError
from facerec.evaluation.embedding import embed_images
from facerec.images.preprocessing import Preprocessing
from facerec.models.model import Model
from tests.foreign_files import SIZE, Colour, close, colour_file, expected, onnx_file, pixels, raw

# ONNX -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("count", [1, 7])
def test_an_onnx_network_of_any_batch_size_is_fed_what_it_takes(
    tmp_path: Path, batch: int | str, count: int
) -> None:
    model = load_model(onnx_file(tmp_path / "net.onnx", batch=batch), device="cpu")
    assert model.input == Preprocessing(size=SIZE), "the size is the network's own"
    close(raw(model, pixels(count)), expected(pixels(count)))


@pytest.mark.parametrize("batch", ["N", 1])
def test_flip_and_cutting_into_batches_change_nothing_for_it(tmp_path: Path, batch: int | str) -> None:
    model = load_model(onnx_file(tmp_path / "net.onnx", batch=batch), device="cpu", mean=0, std=255)
    embedded = embed_images(model, list(pixels(9)), batch_size=4)
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
    with pytest.raises(ConfigError, match=r"input\.size=112: the network takes 16×16 images alone"):
        load_model(path, device="cpu", size=112)
    free = onnx_file(tmp_path / "free.onnx", shape=(3, "height", "width"))
    close(raw(load_model(free, device="cpu", size=SIZE), pixels(2)), expected(pixels(2)))
    with pytest.raises(CheckpointError, match=r"images \(B, 3, 112×112\): .*set input\.size"):
        load_model(free, device="cpu")


def test_what_is_no_use_for_a_network_of_its_own_is_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=r"net\.onnx: is no ir_50; it is none of the known backbones"):
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
        close(raw(model, pixels(5)), raw(Model(Colour(2), Preprocessing(size=SIZE)), pixels(5)))
        frozen = torch.jit.freeze(torch.jit.script(Colour(1).eval()))
        frozen.save(str(tmp_path / "frozen.pt"))
        model = load_model(tmp_path / "frozen.pt", device="cpu", size=SIZE, allow_code=True)
        close(raw(model, pixels(5)), raw(Model(Colour(1), Preprocessing(size=SIZE)), pixels(5)))

    @pytest.mark.parametrize("batch", [2, 4])
    def test_one_that_was_traced_with_a_batch_size_is_fed_as_many(self, tmp_path: Path, batch: int) -> None:
        class Fixed(nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return image.reshape(batch, 3, SIZE * SIZE).mean(1)

        torch.jit.trace(Fixed(), torch.zeros(batch, 3, SIZE, SIZE)).save(str(tmp_path / "net.pt"))
        model = load_model(tmp_path / "net.pt", device="cpu", size=SIZE, allow_code=True)
        images = pixels(6)
        prepared = (images.astype(np.float32) - 127.5) / 127.5
        close(raw(model, images), prepared.mean(-1).reshape(6, -1))

    def test_images_it_does_not_take_are_said(self, tmp_path: Path) -> None:
        torch.jit.trace(
            nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)), torch.zeros(1, 3, 16, 16)
        ).save(str(tmp_path / "net.pt"))
        with pytest.raises(CheckpointError, match=r"images \(B, 3, 112×112\).*set input\.size"):
            load_model(tmp_path / "net.pt", device="cpu", allow_code=True)
