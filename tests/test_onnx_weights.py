"""ONNX networks become backbones that train: found by structure under any names, equal to the last digits."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from facerec import load_model
from facerec.backbones import create_backbone
from facerec.errors import CheckpointError
from facerec.images.preprocessing import Preprocessing
from facerec.models.export import export
from facerec.models.model import Model
from facerec.models.onnx_network import OnnxNetwork
from facerec.models.onnx_weights import unfold_batch_norms
from facerec.models.weights import load_pretrained
from tests.test_published_backbones import filled

SMALL: dict[str, Any] = {"embedding_size": 16, "input_size": 32}


def exported(backbone: nn.Module, path: Path) -> Path:
    """As InsightFace exports: batch norms folded into convolutions; then every name is a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(1, 3, *backbone.input_size)  # type: ignore[misc]
        torch.onnx.export(backbone, (image,), str(path), dynamo=False, verbose=False)
    model = onnx.load(path)
    graph = model.graph
    names: dict[str, str] = {}

    def number(name: str) -> str:
        return names.setdefault(name, str(len(names) + 500)) if name else name

    for node in graph.node:
        node.name = ""
        node.input[:] = [number(name) for name in node.input]
        node.output[:] = [number(name) for name in node.output]
    for one in (*graph.initializer, *graph.input, *graph.output):
        one.name = number(one.name)
    del graph.value_info[:]
    onnx.save(model, path)
    return path


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def raw(backbone: nn.Module) -> torch.Tensor:
    return Model(backbone, Preprocessing(size=32)).embed(images(), flip=False, normalise=False)


@pytest.mark.parametrize("name", ["iresnet18", "mbf", "mobilefacenet", "resnet50"])
def test_a_known_network_becomes_a_backbone_with_equal_outputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    original = filled(name, **SMALL)
    path = exported(original, tmp_path / "net.onnx")
    backbone = create_backbone(name, **SMALL)
    with caplog.at_level(logging.INFO):
        absorbed = load_pretrained(backbone, path)
    assert absorbed and f"{len(absorbed)} batch norms were folded into the layer before" in caplog.text
    torch.testing.assert_close(raw(backbone), raw(original), rtol=1e-4, atol=1e-5)
    runs = load_model(path, device="cpu").embed(images(), flip=False)
    torch.testing.assert_close(nn.functional.normalize(raw(backbone)), runs, rtol=0, atol=1e-5)


def test_a_batch_norm_that_was_folded_away_trains_on_after_it_is_unfolded(tmp_path: Path) -> None:
    original = filled("mobilefacenet", **SMALL)
    batch = torch.from_numpy(images(64)).permute(0, 3, 1, 2).float() / 127.5 - 1
    for module in original.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = (
                1.0  # the statistics of the next batch, as a trained network has those of its images
            )
    with torch.no_grad():
        original.train()(batch)
    original.eval()
    backbone = create_backbone("mobilefacenet", **SMALL)
    absorbed = load_pretrained(backbone, exported(original, tmp_path / "net.onnx"))
    with torch.no_grad():
        before = backbone.eval()(batch)
        absorbed_train = backbone.train()(batch)
    load_pretrained(backbone, tmp_path / "net.onnx")  # the pass in training mode has moved its statistics
    backbone.eval()
    with torch.no_grad():
        unfold_batch_norms(backbone, absorbed, lambda: backbone(batch))
        torch.testing.assert_close(backbone(batch), before, rtol=1e-4, atol=1e-4)
        original_norm = dict(original.named_modules())["conv1.bn"]
        norm = dict(backbone.named_modules())["conv1.bn"]
        unfolded_train = backbone.train()(batch)
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(original_norm, nn.BatchNorm2d)
    assert not torch.allclose(norm.running_var, torch.ones(64), atol=1e-3), "statistics of its images"
    off = [(one - before).norm() / before.norm() for one in (unfolded_train, absorbed_train)]
    assert off[0] < off[1] / 3, (
        "in training mode it is nearly the network that it was, absorbed it is another"
    )


def test_an_onnx_network_opens_as_the_backbone_that_is_asked_for(tmp_path: Path) -> None:
    path = exported(filled("mbf", embedding_size=64), tmp_path / "w600k_mbf.onnx")
    model = load_model(path, device="cpu", backbone={"name": "mbf"})
    assert not isinstance(model.backbone, OnnxNetwork)
    assert model.config["backbone"] == {"name": "mbf", "embedding_size": 64, "input_size": 112}
    with pytest.raises(CheckpointError, match=r"is no ir_50; it fits backbone=mbf$"):  # the sizes follow
        load_model(path, device="cpu", backbone={"name": "ir_50"})


def test_another_network_is_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = exported(filled("mbf", **SMALL), tmp_path / "net.onnx")
    backbone = create_backbone("mobilefacenet", **SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    fits = rf"it fits backbone=mbf backbone\.embedding_size={SMALL['embedding_size']} data\.size=32$"
    with pytest.raises(
        CheckpointError, match=rf"^backbone\.pretrained=.*: does not fit the backbone; {fits}"
    ):
        load_pretrained(backbone, path)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    larger = create_backbone("mbf", **{**SMALL, "input_size": [64, 32]})
    with pytest.raises(CheckpointError, match=r"is for images of data\.size=32, and the backbone for 64×32$"):
        load_pretrained(larger, path)


def test_equal_layers_with_another_function_are_found_out(tmp_path: Path) -> None:
    path = exported(filled("mobilefacenet", **SMALL), tmp_path / "net.onnx")
    model = onnx.load(path)
    (old,) = {node.input[0] for node in model.graph.node if node.op_type == "Flatten"}
    model.graph.node.insert(len(model.graph.node) - 3, onnx.helper.make_node("Abs", [old], ["abs"]))
    next(node for node in model.graph.node if node.op_type == "Flatten").input[0] = "abs"
    onnx.save(model, path)
    backbone = create_backbone("mobilefacenet", **SMALL)
    with pytest.raises(CheckpointError, match="has the layers of the backbone, but gives other embeddings"):
        load_pretrained(backbone, path)


def test_numbers_that_a_file_only_claims_are_refused_in_a_line(tmp_path: Path) -> None:
    path = exported(filled("mobilefacenet", **SMALL), tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.initializer[2].dims[:] = [1 << 40, 1 << 20]
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"^backbone\.pretrained=.*net\.onnx: "):
        load_pretrained(create_backbone("mobilefacenet", **SMALL), path)


def test_numbers_that_many_layers_share_do_not_fill_the_memory(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["p"]),
        helper.make_node("Flatten", ["p"], ["e0"]),
    ]
    nodes.append(helper.make_node("MatMul", ["e0", "first"], ["e1"]))
    nodes += [helper.make_node("MatMul", [f"e{i}", "square"], [f"e{i + 1}"]) for i in range(1, 40)]
    values = {"first": np.ones((3, 256), np.float32), "square": np.eye(256, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "face",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("e40", kind, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "x.onnx",
    )
    with pytest.raises(CheckpointError, match="its layers take more than 4 times the numbers that it holds"):
        load_pretrained(create_backbone("mbf", **SMALL), tmp_path / "x.onnx")


def with_nodes_before(path: Path, nodes: list[tuple[str, list[Any]]]) -> None:
    """Put nodes with constants between the input and what reads it, as converters of MXNet do."""
    model = onnx.load(path)
    graph = model.graph
    name = graph.input[0].name
    held = {one.name for one in graph.initializer}
    (name,) = {one.name for one in graph.input} - held
    for node in graph.node:
        node.input[:] = ["prepared" if one == name else one for one in node.input]
    made = []
    for i, (kind, constants) in enumerate(nodes):
        given = []
        for j, value in enumerate(constants):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), f"c{i}_{j}"))
            given.append(f"c{i}_{j}")
        output = "prepared" if i == len(nodes) - 1 else f"p{i}"
        made.append(onnx.helper.make_node(kind, [name if i == 0 else f"p{i - 1}", *given], [output]))
    for node in reversed(made):
        graph.node.insert(0, node)
    onnx.save(model, path)


number = np.float32


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([("Sub", [number(127.5)]), ("Mul", [number(1 / 128)])], {"std": 128.0}),
        ([("Div", [number(255)]), ("Sub", [number(0.5)]), ("Div", [number(0.5)])], {}),
        (
            [
                ("Sub", [np.array([100, 110, 120], number).reshape(1, 3, 1, 1)]),
                ("Slice", [np.array([-1]), np.array([-(2**63) + 1]), np.array([1]), np.array([-1])]),
                ("Mul", [number(0.01)]),
            ],
            {"mean": [120.0, 110.0, 100.0], "std": 100.0, "channels": "bgr"},
        ),
        (  # of images from 0 to 1
            [("Sub", [number(0.5)]), ("Mul", [number(2)])],
            {},
        ),
    ],
)
def test_preprocessing_inside_is_left_out_of_the_backbone_and_done_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, nodes: list[Any], wanted: dict[str, Any]
) -> None:
    original = filled("mobilefacenet", **SMALL)
    path = exported(original, tmp_path / "net.onnx")
    with_nodes_before(path, nodes)
    expected = Model(original, Preprocessing(size=32, **wanted)).embed(images(), flip=False)
    runs = load_model(path, device="cpu")
    torch.testing.assert_close(runs.embed(images(), flip=False), expected, rtol=0, atol=1e-5)
    with caplog.at_level(logging.INFO):
        rebuilt = load_model(path, device="cpu", backbone={"name": "mobilefacenet"})
    assert rebuilt.input == Preprocessing(size=32, **wanted) and not rebuilt.knows_input
    torch.testing.assert_close(rebuilt.embed(images(), flip=False), expected, rtol=0, atol=1e-5)
    assert "prepares images inside, (x − " in caplog.text and "is to be done before" in caplog.text

    backbone = create_backbone("mobilefacenet", **SMALL)
    load_pretrained(backbone, path, Preprocessing(size=32, mean=0, std=64))
    assert "from images prepared otherwise; say " in caplog.text
    caplog.clear()
    load_pretrained(backbone, path, Preprocessing(size=32, **wanted))
    assert "prepared otherwise" not in caplog.text


def test_an_export_with_its_preprocessing_inside_is_rebuilt_without(tmp_path: Path) -> None:
    model = Model(filled("mobilefacenet", **SMALL), Preprocessing(120, [128, 127, 126], "bgr", 32))
    path = export(model, tmp_path / "ready.onnx", "onnx", preprocessing=True)
    rebuilt = load_model(path, device="cpu", backbone={"name": "mobilefacenet"})
    assert rebuilt.input == model.input and rebuilt.knows_input
    expected = model.embed(images(), flip=False)
    for one in (rebuilt, load_model(path, device="cpu")):
        torch.testing.assert_close(one.embed(images(), flip=False), expected, rtol=0, atol=1e-5)


def test_a_factor_below_0_or_another_reader_is_no_preprocessing(tmp_path: Path) -> None:
    path = exported(filled("mobilefacenet", **SMALL), tmp_path / "net.onnx")
    with_nodes_before(path, [("Mul", [number(-1)])])
    assert OnnxNetwork(path, torch.device("cpu")).inside is None
    with pytest.raises(CheckpointError, match="it does more to the images or to the embeddings"):
        load_pretrained(create_backbone("mobilefacenet", **SMALL), path)
