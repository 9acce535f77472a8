"""ONNX networks from anywhere: what they say of a batch, of several outputs, of other files, and bombs."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from facerec import load_model
from facerec.errors import CheckpointError, ConfigError, FacerecError
from facerec.evaluation.embedding import embed_images
from facerec.images.preprocessing import Preprocessing
from facerec.models import onnx_network, onnx_worker
from facerec.models.model import Model
from tests.foreign_files import SIZE, WIDTH, expected, onnx_file, pixels, raw, weight

Node = tuple[str, list[str], list[str]] | tuple[str, list[str], list[str], dict[str, Any]]


def network(
    path: Path,
    nodes: list[Node],
    values: dict[str, Any] | None = None,
    *,
    batch: int | str = "N",
    outputs: tuple[str, ...] = ("o",),
) -> Path:
    """Flatten, a matrix product to `e`, then `nodes`."""
    made = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["e"])]
    made += [
        helper.make_node(kind, given, out, **(more[0] if more else {})) for kind, given, out, *more in nodes
    ]
    arrays = {"w": weight(), **{name: np.asarray(value) for name, value in (values or {}).items()}}
    graph = helper.make_graph(
        made,
        "face",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def opened(path: Path) -> Model:
    return load_model(path, device="cpu")


# What it says of an image is about that image -------------------------------------------------------------

# The first row for all; rows from the seventh on are the sixth; each row plus the mean of the batch.
FIRST: list[Node] = [
    ("Slice", ["e", "zero", "one", "zero"], ["first"]),
    ("Shape", ["e"], ["s"]),
    ("Expand", ["first", "s"], ["o"]),
]
SIX: list[Node] = [
    ("Shape", ["e"], ["s"], {"end": 1}),
    ("Squeeze", ["s"], ["n"]),
    ("Range", ["start", "n", "step"], ["all"]),
    ("Min", ["all", "five"], ["row"]),
    ("Gather", ["e", "row"], ["o"]),
]
MEAN: list[Node] = [("ReduceMean", ["e"], ["m"], {"axes": [0]}), ("Add", ["e", "m"], ["o"])]
VALUES = {"zero": [0], "one": [1], "start": 0, "step": 1, "five": 5}


@pytest.mark.parametrize(("nodes", "times"), [(FIRST, 1), (SIX, 1), (MEAN, 2)], ids=["first", "six", "mean"])
@pytest.mark.parametrize("count", [2, 8, 32])
def test_a_network_that_is_right_for_one_image_only_is_fed_one_at_a_time(
    tmp_path: Path, nodes: list[Node], times: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(network(tmp_path / "net.onnx", nodes, VALUES))
    images = pixels(count)
    np.testing.assert_allclose(raw(model, images), times * expected(images), rtol=1e-4, atol=1e-5)
    embedded = embed_images(model, list(images), batch_size=count, flip=False)
    np.testing.assert_allclose(embedded.plain_PD, times * expected(images), rtol=1e-4, atol=1e-5)
    if nodes is not SIX or count > 6:
        assert "net.onnx: is right for one image at a time only (of " in caplog.text


def test_a_network_for_fours_whose_rows_depend_on_each_other_is_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", MEAN, batch=4)
    with pytest.raises(CheckpointError, match=r"net\.onnx: takes batches of 4 only, and the embedding of an"):
        opened(path)


def test_a_network_that_answers_by_chance_is_refused(tmp_path: Path) -> None:
    nodes: list[Node] = [("RandomNormalLike", ["e"], ["r"]), ("Add", ["e", "r"], ["o"])]
    with pytest.raises(CheckpointError, match=r"net\.onnx: gives an image another embedding each time"):
        opened(network(tmp_path / "net.onnx", nodes))


def test_a_network_that_says_the_same_of_all_images_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(
        network(tmp_path / "net.onnx", [("Mul", ["e", "nothing"], ["o"])], {"nothing": np.float32(0)})
    )
    assert "net.onnx: gives different images the same embedding" in caplog.text
    assert not raw(model, pixels(2)).any()


@pytest.mark.parametrize("shape", [[-1], [WIDTH]])
def test_an_embedding_without_a_batch_axis_is_taken_one_at_a_time(tmp_path: Path, shape: list[int]) -> None:
    model = opened(network(tmp_path / "net.onnx", [("Reshape", ["e", "shape"], ["o"])], {"shape": shape}))
    np.testing.assert_allclose(raw(model, pixels(5)), expected(pixels(5)), rtol=1e-4, atol=1e-5)


def test_torchscript_is_compared_too(tmp_path: Path) -> None:
    class First(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            rows = image.flatten(1)[:, :8]
            return rows[:1].expand(rows.shape)

    with torch.no_grad():
        torch.jit.script(First()).save(str(tmp_path / "net.pt"))
    model = load_model(tmp_path / "net.pt", device="cpu", size=SIZE, allow_code=True)
    images = pixels(3)
    direct = Model(nn.Flatten(), Preprocessing(size=SIZE)).embed(images, flip=False, normalise=False)[:, :8]
    np.testing.assert_allclose(raw(model, images), direct.numpy(), rtol=1e-5)


# Several outputs ------------------------------------------------------------------------------------------


def test_of_several_outputs_that_may_be_the_embedding_none_is_guessed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    doubled: list[Node] = [("Add", ["e", "e"], ["landmarks"])]
    path = network(tmp_path / "net.onnx", doubled, outputs=("landmarks", "e"))
    with pytest.raises(
        CheckpointError, match=r"several of its outputs may be the embedding: landmarks \(1, 8\)"
    ):
        opened(path)
    model = opened(onnx_file(tmp_path / "named.onnx", outputs=("flat", "norm", "embedding")))
    np.testing.assert_allclose(raw(model, pixels(3)), expected(pixels(3)), rtol=1e-4, atol=1e-5)
    assert "the one called embedding is used" in caplog.text


# Numbers in other files -----------------------------------------------------------------------------------


def moved(path: Path, location: str) -> Path:
    """The network with its numbers looked for elsewhere."""
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_numbers_in_a_folder_below_and_in_a_cache_of_links_are_taken(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", external=True)
    (tmp_path / "below").mkdir()
    (tmp_path / "net.bin").rename(tmp_path / "below" / "net.bin")
    moved(path, "below/net.bin")
    assert opened(path).backbone.files == [path, tmp_path / "below" / "net.bin"]
    np.testing.assert_allclose(raw(opened(path), pixels(2)), expected(pixels(2)), rtol=1e-4, atol=1e-5)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for name, blob in (("net.onnx", "1"), ("net.bin", "2")):
        source = onnx_file(tmp_path / "net.onnx", external=True).with_name(name)
        source.rename(tmp_path / "blobs" / blob)
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{blob}")
    link = tmp_path / "snapshot" / "net.onnx"
    tensors = onnx_worker.tensors_in(onnx_worker.parsed(link))
    assert onnx_worker.external_files(link, tensors) == [tmp_path / "blobs" / "2"]


@pytest.mark.parametrize("how", ["up", "absolute", "link", "memory", "subgraph", "missing", "pipe"])
def test_files_outside_of_the_folder_are_never_read(tmp_path: Path, how: str) -> None:
    (tmp_path / "model").mkdir()
    path = onnx_file(tmp_path / "model" / "net.onnx", external=True)
    secret = tmp_path / "secret"
    (tmp_path / "model" / "net.bin").rename(secret)
    said = "a file outside of its folder"
    if how == "link":
        (tmp_path / "model" / "net.bin").symlink_to(secret)
    elif how == "subgraph":  # a constant of a branch, in no list of initializers
        moved(path, "../secret")
        model = onnx.load_model(path, load_external_data=False)
        constant = helper.make_node("Constant", [], ["w"], value=model.graph.initializer[0])
        branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", 1, None)])
        yes = numpy_helper.from_array(np.array(True), "yes")
        chosen = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
        del model.graph.initializer[0]
        model.graph.initializer.append(yes)
        model.graph.node.insert(0, chosen)
        path.write_bytes(model.SerializeToString())
    elif how == "pipe":
        os.mkfifo(tmp_path / "model" / "net.bin")
        said = "no such file in its folder"
    elif how == "missing":
        said = "no such file in its folder"
    else:
        moved(path, {"up": "../secret", "absolute": str(secret), "memory": "*/_ORT_MEM_ADDR_/*"}[how])
        said = "no such file in its folder" if how == "memory" else said
    with pytest.raises(CheckpointError, match=rf"net\.onnx: names '.*' for its numbers.*{said}"):
        opened(path)


@pytest.mark.parametrize(
    "metadata", [{"input": "[" * 100_000}, {"input": "{"}, {"step": "²"}, {"step": "9" * 6000}]
)
def test_metadata_that_nobody_exported_is_refused_or_left_alone(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    model = onnx.load(path)
    for key, value in metadata.items():
        model.metadata_props.add(key=f"facerec.{key}", value=value)
    onnx.save_model(model, path)
    if "input" in metadata:
        with pytest.raises(CheckpointError, match=r"net\.onnx: its metadata facerec\.input is damaged"):
            opened(path)
    else:
        assert opened(path).step is None


# Files made to hurt ---------------------------------------------------------------------------------------


def fill(path: Path, sides: tuple[int, int] = (1 << 20, 1 << 20)) -> Path:
    """A tensor of 4 TB, said in a few bytes."""
    nodes: list[Node] = [
        ("ConstantOfShape", ["huge"], ["c"]),
        ("ReduceSum", ["c"], ["sum"], {"keepdims": 0}),
        ("Add", ["e", "sum"], ["o"]),
    ]
    return network(path, nodes, {"huge": sides})


def loop(path: Path, rounds: int = 1 << 62) -> Path:
    """So many rounds of a loop."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    values = {"rounds": np.int64(rounds), "yes": np.array(True)}
    return network(path, [("Loop", ["rounds", "yes", "e"], ["o"], {"body": body})], values)


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "4 TB": (fill, r"net\.onnx: .*takes more than the 1\.0 GiB of memory that it may have"),
    "more than the limit": (
        lambda path: fill(path, (1 << 15, 1 << 14)),
        r"net\.onnx: .*takes more than the 1\.0 GiB of memory that it may have",
    ),
    "time": (loop, r"net\.onnx: was stopped, for a batch of 1 took it more than 1 s"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_network_that_never_ends_or_takes_all_memory_ends_in_a_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = BOMBS[kind]
    path = make(tmp_path / "net.onnx")
    monkeypatch.setattr(onnx_network, "_SECONDS", 1.0 if kind == "time" else 60.0)
    monkeypatch.setattr(onnx_network, "_SECONDS_IMAGE", 0.0)
    monkeypatch.setattr(onnx_network, "_MEMORY", 1 << 30)
    with pytest.raises(CheckpointError, match=message):
        opened(path)


def test_a_size_that_no_memory_holds_is_refused_before_there_is_an_image(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", shape=(3, "height", "width"))
    with pytest.raises(ConfigError, match=r"input\.size=1048576: must be 1 to 4096 pixels"):
        load_model(path, device="cpu", size=1 << 20)


@pytest.mark.parametrize("noticed", [False, True])
def test_a_stopped_network_is_opened_again_and_none_outlives_its_model(tmp_path: Path, noticed: bool) -> None:
    model = opened(onnx_file(tmp_path / "net.onnx"))
    worker: Any = model.backbone._worker
    first = worker._process
    first.kill()
    if noticed:
        first.wait()  # so that nobody reads the request
    with pytest.raises(
        CheckpointError, match=r"net\.onnx: onnxruntime crashed over a batch of 2 \(SIGKILL\)"
    ):
        raw(model, pixels(2))
    np.testing.assert_allclose(raw(model, pixels(2)), expected(pixels(2)), rtol=1e-4, atol=1e-5)
    second = worker._process
    assert second.pid != first.pid and second.poll() is None
    del model, worker
    assert second.poll() is not None


def mutated(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.randint(1, 9)]
            case 2:
                data[at:at] = chance.randbytes(chance.randint(1, 9))
            case _:
                data[at : at + 20] = data[(other := chance.randrange(len(data))) : other + 20]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("rounds", [12, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_network_is_refused_or_gives_embeddings(
    tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_network, "_SECONDS", 10.0)
    content, chance = onnx_file(tmp_path / "net.onnx").read_bytes(), random.Random(rounds)
    head = content[:-400]  # most of it is numbers; what says what to do stands before and behind
    path = tmp_path / "mutated.onnx"
    for _ in range(rounds):
        path.write_bytes(mutated(content[:300], chance) + content[300 : len(head)] + content[len(head) :])
        try:
            raw(opened(path), pixels(2))
        except FacerecError as error:
            assert "\n" not in str(error) and "mutated.onnx" in str(error)
