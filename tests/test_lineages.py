"""Published weights of every lineage open as they are: names, wrappers, epsilons, preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec import load_model
from facerec.backbones import create_backbone
from facerec.backbones.base import on_meta_device
from facerec.errors import CheckpointError
from facerec.images.preprocessing import Preprocessing
from facerec.models.export import export
from facerec.models.model import Model
from facerec.models.recognition import recognise
from facerec.models.weights import load_pretrained
from tests.test_published_backbones import filled

State = dict[str, Tensor]


def made(name: str, eps: dict[str, float] | None = None, **settings: Any) -> nn.Module:
    """A backbone with weights that depend on its names alone, and batch norms with these eps."""
    backbone = filled(name, **settings)
    for entry, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = next((value for part, value in (eps or {}).items() if part in entry), module.eps)
    return backbone


def faces(height: int = 112, width: int = 112) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def same_embeddings(model: Model, backbone: nn.Module, **input: Any) -> None:
    images = faces(*model.input.shape)
    prepared = Preprocessing(**input)
    assert model.input == prepared
    expected = Model(backbone, prepared).embed(images, flip=False, normalise=False)
    torch.testing.assert_close(
        model.embed(images, flip=False, normalise=False), expected, rtol=1e-4, atol=1e-5
    )


def renamed(state: State, names: Iterator[str]) -> State:
    """The entries module by module under other names, in the same order."""
    found: dict[str, str] = {}
    result = {}
    for entry, value in state.items():
        module, _, role = entry.rpartition(".")
        if module not in found:
            found[module] = next(names)
        result[f"{found[module]}.{role}"] = value
    assert next(names, None) is None
    return result


def xiaoccer_names() -> Iterator[str]:
    for block in ("conv1", "dw_conv1"):
        yield from (f"{block}.{part}" for part in ("conv", "bn", "prelu"))
    for block in range(15):
        yield from (f"blocks.{block}.conv.{part}" for part in range(8))
    yield from (f"conv2.{part}" for part in ("conv", "bn", "prelu"))
    for block in ("linear7", "linear1"):
        yield from (f"{block}.{part}" for part in ("conv", "bn"))


def test_xiaoccers_mobilefacenet_of_112_by_96_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = made("mobilefacenet", embedding_size=128, input_size=[112, 96])
    state = renamed(backbone.state_dict(), xiaoccer_names())
    state["linear1.conv.weight"] = state["linear1.conv.weight"][:, :, None, None]  # a 1×1 convolution there
    torch.save({"epoch": 68, "net_state_dict": state}, tmp_path / "068.ckpt")
    with caplog.at_level(logging.INFO):
        model = load_model(tmp_path / "068.ckpt", device="cpu")
    assert "names differ, by their order and shapes, which fit in one way only" in caplog.text
    assert "weights of mobilefacenet as Xiaoccer's MobileFaceNet writes them" in caplog.text
    same_embeddings(model, backbone, std=128, size=[112, 96])


def sface_names() -> Iterator[str]:
    def block(name: str, parts: int) -> Iterator[str]:
        return (f"{name}.{part}" for part in ("conv2d", "batchnorm", "relu")[:parts])

    def depthwise(name: str) -> Iterator[str]:
        for inner, parts in (("conv_sep", 3), ("conv_dw", 3), ("conv_proj", 2)):
            yield from block(f"{name}.{inner}", parts)

    yield from block("conv_1", 3)
    yield from block("conv_2_dw", 3)
    for number, (joint, blocks) in {"3": ("dconv_23", 4), "4": ("dconv_34", 6), "5": ("dconv_45", 2)}.items():
        yield from depthwise(joint)
        for i in range(blocks):
            yield from depthwise(f"res_{number}.model.block{i}")
    yield from block("conv_6sep", 3)
    yield from block("conv_6dw7_7", 2)
    yield from ("pre_fc1", "fc1")


def test_sfaces_mobilefacenet_opens_with_its_epsilons_and_its_bias(tmp_path: Path) -> None:
    backbone = made("mobilefacenet", {"linear": 1e-5, ".bn": 1e-3, "bn": 2e-5})
    state = renamed(backbone.state_dict(), sface_names())
    bias = torch.linspace(-1, 1, 512)
    state["pre_fc1.bias"] = bias
    torch.save(state, tmp_path / "sface.pth")
    backbone.linear.bias = nn.Parameter(bias)
    same_embeddings(load_model(tmp_path / "sface.pth", device="cpu"), backbone, std=12.8)


@pytest.mark.parametrize("prefix", ["features.module.", "module.features."])
def test_magface_opens_with_its_epsilon_in_bgr(tmp_path: Path, prefix: str) -> None:
    backbone = made("iresnet18", {"": 2e-5})
    state = {prefix + name: value for name, value in backbone.state_dict().items()}
    state["module.fc.weight" if prefix.startswith("module") else "fc.weight"] = torch.ones(512, 10)
    torch.save({"epoch": 25, "arch": "iresnet18", "state_dict": state}, tmp_path / "magface.pth")
    model = load_model(tmp_path / "magface.pth", device="cpu")
    same_embeddings(model, backbone, channels="bgr", mean=0, std=255)


def test_training_on_from_a_lineage_says_how_it_prepares_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"embedding_size": 8, "input_size": 32}
    state = create_backbone("iresnet18", **small).state_dict()
    torch.save({f"features.module.{name}": value for name, value in state.items()}, tmp_path / "m.pth")
    backbone = create_backbone("iresnet18", **small)
    load_pretrained(backbone, tmp_path / "m.pth", Preprocessing(channels="bgr", mean=0, std=255))
    assert "prepared otherwise" not in caplog.text
    load_pretrained(backbone, tmp_path / "m.pth", Preprocessing())
    assert "as MagFace writes them, from images prepared otherwise; say input.channels=bgr" in caplog.text
    assert caplog.text.strip().endswith("input.mean=0.0 input.std=255.0")


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors", "hub", "onnx", "network"])
def test_training_on_from_a_file_says_how_it_prepares_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    name = "mobilefacenet_relu" if kind == "network" else "mobilefacenet"
    settings = {"name": name, "embedding_size": 8, "input_size": 32}
    own = Preprocessing(120, 60, "bgr", 32)
    model = Model(create_backbone(**settings).eval(), own, config={"backbone": settings})
    path = tmp_path / "file"
    if kind == "checkpoint":
        state = {"backbone": model.backbone.state_dict(), "input": own.to_dict(), "config": model.config}
        torch.save(state, path)
    elif kind == "network":  # a bare state dict, whose network has a usual preprocessing
        own = Preprocessing(**{**model.backbone.preprocessing, "size": 32})  # type: ignore[arg-type]
        torch.save(model.backbone.state_dict(), path)
    else:
        export(model, path, kind)  # type: ignore[arg-type]
    backbone = create_backbone(**settings)
    load_pretrained(backbone, path, own)
    assert "prepared otherwise" not in caplog.text
    load_pretrained(backbone, path, Preprocessing(size=32))
    said = caplog.text.strip().rpartition("say ")[2]
    changed = {key: value for key, value in own.to_dict().items() if value != Preprocessing.__dict__[key]}
    del changed["size"]
    assert changed and all(
        f"input.{key}={value}".replace(", ", ",") in said for key, value in changed.items()
    )


def test_cvlface_is_rgb_where_adaface_is_bgr(tmp_path: Path) -> None:
    backbone = made("adaface_ir_18")
    for prefix, channels in (("net.", "rgb"), ("model.", "bgr")):
        state = {prefix + name: value for name, value in backbone.state_dict().items()}
        torch.save(state, tmp_path / "x.pt")
        same_embeddings(load_model(tmp_path / "x.pt", device="cpu"), backbone, channels=channels)


def test_curricularface_has_no_scale_in_its_last_batch_norm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"embedding_size": 8, "input_size": 32}
    backbone = made("ir_50", **small)
    nn.init.ones_(backbone.output_layer[4].weight)
    nn.init.zeros_(backbone.output_layer[4].bias)
    scales = ("output_layer.4.weight", "output_layer.4.bias")
    torch.save({k: v for k, v in backbone.state_dict().items() if k not in scales}, tmp_path / "backbone.pth")
    other = create_backbone("ir_50", **small)
    nn.init.constant_(other.output_layer[4].weight, 7)
    with caplog.at_level(logging.INFO):
        load_pretrained(other, tmp_path / "backbone.pth")
    assert "not in the file, so 1 and 0: output_layer.4.weight, output_layer.4.bias" in caplog.text
    assert all(torch.equal(other.state_dict()[k], v) for k, v in backbone.state_dict().items())


def test_averaged_weights_are_taken_where_a_file_has_both(tmp_path: Path) -> None:
    small = {"embedding_size": 8, "input_size": 32}
    averaged, last = made("mobilefacenet", **small), create_backbone("mobilefacenet", **small)
    content = {
        "state_dict": last.state_dict() | {"more": torch.ones(1)},
        "state_dict_ema": averaged.state_dict(),
    }
    torch.save(content, tmp_path / "timm.pth")
    load_pretrained(last, tmp_path / "timm.pth")
    assert torch.equal(last.linear.weight, averaged.linear.weight)
    swa = torch.optim.swa_utils.AveragedModel(averaged)
    torch.save(swa.state_dict(), tmp_path / "swa.pth")
    other = create_backbone("mobilefacenet", **small)
    load_pretrained(other, tmp_path / "swa.pth")
    assert torch.equal(other.linear.weight, averaged.linear.weight)


def foamlius(state: State, image: Tensor) -> Tensor:
    """The published forward pass of foamliu's MobileFaceNet, operation by operation."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:  # convolution, batch norm, ReLU6
        weight = state[f"{name}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        return F.relu6(norm(x, f"{name}.1"))

    x = unit(image, "conv1", 2)
    x = F.relu(norm(F.conv2d(x, state["dw_conv.depthwise.weight"], padding=1, groups=64), "dw_conv.bn1"))
    x = F.relu(norm(F.conv2d(x, state["dw_conv.pointwise.weight"]), "dw_conv.bn2"))
    for block in range(15):
        name, stride = f"features.{block}.conv", 2 if block in (0, 5, 12) else 1
        inner = unit(unit(x, f"{name}.0"), f"{name}.1", stride)
        inner = norm(F.conv2d(inner, state[f"{name}.2.weight"]), f"{name}.3")
        x = x + inner if stride == 1 else inner
    x = unit(x, "conv2")
    x = norm(F.conv2d(x, state["gdconv.depthwise.weight"], groups=512), "gdconv.bn")
    return norm(F.conv2d(x, state["conv3.weight"], state["conv3.bias"]), "bn").flatten(1)


def test_foamlius_mobilefacenet_opens_and_computes_what_the_published_code_does(tmp_path: Path) -> None:
    state = made("mobilefacenet_relu", embedding_size=128).state_dict()
    torch.save(
        {"epoch": 1, "model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "x"
    )
    model = load_model(tmp_path / "x", device="cpu")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = torch.from_numpy(faces()).permute(0, 3, 1, 2) / 255
    image = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = model.embed(faces(), flip=False, normalise=False)
    torch.testing.assert_close(found, foamlius(state, image), rtol=1e-4, atol=1e-4)


def openspheres(state: State, x: Tensor) -> Tensor:
    """The published forward pass of OpenSphere's SFNet-20, operation by operation."""

    def norm(x: Tensor, name: str) -> Tensor:
        if f"{name}.weight" not in state:
            return x
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def convolution(x: Tensor, name: str, number: int, stride: int = 1) -> Tensor:
        weight, bias = state[f"{name}.conv{number}.weight"], state.get(f"{name}.conv{number}.bias")
        return norm(F.conv2d(x, weight, bias, stride, padding=1), f"{name}.bn{number}")

    for stage, units in enumerate((1, 2, 4, 1), 1):
        x = F.relu(convolution(x, f"layer{stage}.0", 1, 2))
        for unit in range(1, units + 1):
            name = f"layer{stage}.{unit}"
            x = F.relu(convolution(F.relu(convolution(x, name, 1)), name, 2) + x)
    return norm(F.linear(x.flatten(1), state["fc.weight"], state["fc.bias"]), "features")


@pytest.mark.parametrize("name", ["sfnet20", "sfnet20_bn"])
def test_openspheres_network_opens_and_computes_what_the_published_code_does(
    tmp_path: Path, name: str
) -> None:
    state = made(name, embedding_size=8).state_dict()
    torch.save({f"module.{entry}": value for entry, value in state.items()}, tmp_path / "backbone_70000.pth")
    model = load_model(tmp_path / "backbone_70000.pth", device="cpu")
    image = (torch.from_numpy(faces()).permute(0, 3, 1, 2) - 127.5) / 127.5
    found = model.embed(faces(), flip=False, normalise=False)
    torch.testing.assert_close(found, openspheres(state, image), rtol=1e-4, atol=1e-4)


# EdgeFace --------------------------------------------------------------------------------------------------

EDGE = {"name": "timm", "model": "edgenext_xx_small", "batch_norm": False}


@pytest.mark.parametrize("low_rank", [None, 0.6])
def test_edgeface_opens(tmp_path: Path, low_rank: float | None) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    settings = {**EDGE, "model": "edgenext_x_small"} if low_rank else EDGE
    backbone = made(**settings, low_rank=low_rank)
    torch.save(backbone.state_dict(), tmp_path / "edgeface.pt")
    ranks = {"model.stages.0.blocks.0.mlp.fc1.linear1.weight": (19, 32)} if low_rank else {}
    state = backbone.state_dict()
    assert {name: tuple(state[name].shape) for name in ranks} == ranks, (
        "int(0.6 · min(32, 128)), as published"
    )
    same_embeddings(load_model(tmp_path / "edgeface.pt", device="cpu"), backbone)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_edgeface_opens_where_its_linear_layers_are_int8(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    backbone = made(**EDGE)
    quantised = torch.ao.quantization.quantize_dynamic(backbone, {nn.Linear}, dtype=torch.qint8)
    torch.save(quantised.state_dict(), tmp_path / "edgeface_q.pt")
    layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    assert layers
    for name in layers:
        weight = quantised.get_submodule(name).weight().dequantize()
        assert not torch.equal(weight, backbone.get_submodule(name).weight)
        backbone.get_submodule(name).weight = nn.Parameter(weight)
    same_embeddings(load_model(tmp_path / "edgeface_q.pt", device="cpu"), backbone)


# CVLface's ViT ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "vit_s", "patch": 8, "mlp_ratio": 5},
        {"name": "vit_b", "patch": 8, "mlp_ratio": 3, "heads": 16},
    ],
)
def test_cvlfaces_transformers_are_recognised_with_and_without_a_mask_token(
    settings: dict[str, Any], masked: bool
) -> None:
    with on_meta_device():
        state = create_backbone(**settings).state_dict()
    if not masked:
        del state["mask_token"]
    for prefix in ("net.", "model.net."):
        weights = {prefix + name: value for name, value in state.items()}
        assert recognise(weights) == {**settings, "embedding_size": 512, "input_size": 112}


def cvlfaces_vit(state: State, image: Tensor, heads: int, patch: int) -> Tensor:
    """The published code's function: attention head by head."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    width = x.shape[2]
    for block in range(12):
        name = f"blocks.{block}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").split(width, dim=2)
        side = width // heads
        mixed = []
        for head in range(heads):
            part = slice(head * side, (head + 1) * side)
            attention = (q[..., part] @ k[..., part].transpose(1, 2) * side**-0.5).softmax(2)
            mixed.append(attention @ v[..., part])
        x = x + linear(torch.cat(mixed, 2), f"{name}.attn.proj")
        x = x + linear(F.relu6(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    x = norm(x, "norm").flatten(1)
    for i in (0, 2):
        x = linear(x, f"feature.{i}")
        norms = (
            state[f"feature.{i + 1}.{role}"] for role in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, *norms, eps=2e-5)
    return x


def test_cvlfaces_transformer_computes_what_the_published_code_does(tmp_path: Path) -> None:
    network = {"patch": 8, "heads": 16, "mlp_ratio": 5}
    state = made("vit_t", embedding_size=8, input_size=32, **network).state_dict()
    del state["mask_token"]
    torch.save({f"net.{name}": value for name, value in state.items()}, tmp_path / "model.pt")
    asked = {"name": "vit_t", "embedding_size": 8, "input_size": 32, **network}
    model = load_model(tmp_path / "model.pt", device="cpu", backbone=asked)
    image = (torch.from_numpy(faces(32, 32)).permute(0, 3, 1, 2) - 127.5) / 127.5
    found = model.embed(faces(32, 32), flip=False, normalise=False)
    expected = cvlfaces_vit(state, image, heads=16, patch=8)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_edgeface_without_timm_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    names = ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.fc.weight")
    torch.save({f"model.{name}": torch.zeros(2, 2) for name in names}, tmp_path / "edgeface.pt")
    message = r"fit none .* but are of EdgeFace, whose networks are timm's: pip install 'facerec\[timm\]'"
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "edgeface.pt", device="cpu")


# Files of nothing known -------------------------------------------------------------------------------------


def test_a_file_that_fits_nothing_is_answered_with_the_nearest_network(tmp_path: Path) -> None:
    state = create_backbone("mbf").state_dict()
    del state["conv_sep.layers.0.weight"]
    state["extra.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "x.pth")
    message = (
        r"nearest is mbf: 1 missing \(conv_sep\.layers\.0\.weight\); 1 unexpected \(extra\.weight\); give"
    )
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "x.pth")
    torch.save({f"layer_{name}": value for name, value in state.items()}, tmp_path / "y.pth")
    message = r"is mbf, by shapes: 1 missing \(linear or 1×1 512×256\), 1 more in the file \(vector 3\)"
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "y.pth")


def test_names_that_fit_in_two_ways_by_structure_are_not_guessed(tmp_path: Path) -> None:
    backbone = create_backbone("resnet50", embedding_size=8, input_size=32)  # two 1×1 convolutions 64 to 256
    state = backbone.state_dict()
    modules = dict.fromkeys(name.rpartition(".")[0] for name in state)
    other = renamed(state, (f"layer{i}" for i in range(len(modules))))
    assert recognise(other) is None
    torch.save(other, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="fit the backbone in 2 or more ways by order and shapes"):
        load_pretrained(backbone, tmp_path / "x.pth")
