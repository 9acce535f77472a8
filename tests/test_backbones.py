"""Backbones: what goes in and comes out, how they train, and what they say of settings they cannot take."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from facerec import plugins
from facerec.backbones import BACKBONES, create_backbone
from facerec.backbones.base import on_meta_device
from facerec.backbones.flops import activation_bytes, multiply_adds
from facerec.cli.mistakes import config_folder
from facerec.errors import ConfigError
from tests.backbone_families import FAMILIES, PUBLISHED_FAMILIES
from tests.test_published_backbones import images, weightless

SIZE = 32  # pixels; enough for every family, and quick


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    """One small backbone a family."""
    torch.manual_seed(0)
    return {name: create_backbone(name, embedding_size=16, input_size=SIZE) for name in FAMILIES}


@pytest.mark.parametrize(
    ("name", "entry", "deviation"),
    [
        ("iresnet18", "layer2.0.conv1.weight", 0.1),
        ("ir_50", "body.3.res_layer.1.weight", (2 / (64 * 9 + 128 * 9)) ** 0.5),  # Xavier
        ("adaface_ir_18", "body.2.res_layer.1.weight", (2 / (128 * 9)) ** 0.5),  # He, fan out
        ("resnet50", "layer2.0.conv2.weight", (2 / (128 * 9)) ** 0.5),
        ("mbf", "conv_sep.layers.0.weight", (2 / 512) ** 0.5),
        ("sphere20", "conv2_1.weight", (1 / (64 * 9)) ** 0.5),  # Caffe's xavier
        ("sphere20", "conv2_2.weight", 0.01),
        ("vit_t", "blocks.0.mlp.fc1.weight", 0.02),
    ],
)
def test_weights_start_as_published(
    built: dict[str, nn.Module], name: str, entry: str, deviation: float
) -> None:
    assert built[name].state_dict()[entry].std().item() == pytest.approx(deviation, rel=0.03)


def test_a_recipe_may_start_a_network_as_its_own_program_does() -> None:
    entry, kaiming = "body.3.res_layer.1.weight", (2 / (128 * 9)) ** 0.5
    for init, deviation, slope in (("kaiming", kaiming, 0.25), ("sface", 2 * kaiming, 1.0)):
        state = create_backbone("ir_50", embedding_size=16, input_size=SIZE, init=init).state_dict()
        assert state[entry].std().item() == pytest.approx(deviation, rel=0.03)
        assert (state["input_layer.2.weight"] == slope).all()
    magface = create_backbone("iresnet18", embedding_size=16, input_size=SIZE, variant="magface")
    assert magface.layer2[0].conv1.weight.std().item() == pytest.approx(kaiming, rel=0.03)
    assert magface.features.weight.requires_grad


def test_zero_init_makes_every_block_pass_its_input_on() -> None:
    resnet = create_backbone("resnet50", embedding_size=8, input_size=SIZE)
    plain = create_backbone("resnet50", embedding_size=8, input_size=SIZE, zero_init_residual=False)
    assert not resnet.layer1[1].bn3.weight.any() and plain.layer1[1].bn3.weight.all()
    block = create_backbone("iresnet18", input_size=SIZE, zero_init_residual=True).layer1[1].eval()
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(block(x), x)


# -- what goes in and what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_images_become_embeddings_in_bf16_channels_last_and_alone(
    built: dict[str, nn.Module], name: str
) -> None:
    backbone = built[name].eval()
    image_BCHW = images(3)
    with torch.inference_mode():
        embedding_BD = backbone(image_BCHW)
        assert embedding_BD.shape == (3, 16) and embedding_BD.dtype == torch.float32
        alone_D = backbone(image_BCHW[:1])[0]
        last_BD = backbone(image_BCHW.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half_BD = backbone(image_BCHW)
    if name in PUBLISHED_FAMILIES:  # whose embedding is computed in full precision
        assert half_BD.dtype == torch.float32
    scale = embedding_BD.abs().max().item()
    torch.testing.assert_close(alone_D, embedding_BD[0], rtol=1e-3, atol=1e-3 * scale)
    torch.testing.assert_close(last_BD, embedding_BD, rtol=1e-3, atol=1e-3 * scale)
    assert F.cosine_similarity(half_BD.float(), embedding_BD).min() > 0.99


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trainable_parameter_gets_a_gradient_in_mixed_precision(
    built: dict[str, nn.Module], name: str
) -> None:
    backbone = built[name].train().to(memory_format=torch.channels_last)
    backbone.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding_BD = backbone(images(4))
    embedding_BD.square().sum().backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["ir_50", "mobilefacenet", "sphere20"])
def test_images_need_not_be_square(name: str) -> None:
    backbone = create_backbone(name, embedding_size=8, input_size=[48, 32]).eval()
    with torch.inference_mode():
        assert backbone(images(1, 48, 32)).shape == (1, 8)


@pytest.mark.parametrize("shape", [(1, 3, 96, 112), (1, 1, 112, 112), (3, 112, 112), (1, 3, 224, 224)])
def test_images_of_another_shape_are_refused_by_name(shape: tuple[int, ...]) -> None:
    message = re.escape(f"takes images (B, 3, 112, 112), not {shape}")
    with pytest.raises(ConfigError, match=message):
        weightless("mobilefacenet")(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ir_50", {"embedding_size": 0}, r"backbone\.embedding_size=0: must be 1 or more"),
        ("ir_50", {"embedding_size": 1.5}, r"backbone\.embedding_size=1\.5: must be an integer"),
        ("ir_50", {"dropout": 1.0}, r"backbone\.dropout=1(\.0)?: must be 0 or more and less than 1"),
        ("iresnet50", {"dropout": -0.1}, r"backbone\.dropout=-0\.1"),
        ("ir_50", {"input_size": 100}, r"backbone\.input_size=100: must be a multiple of 16"),
        ("ir_50", {"input_size": 0}, r"backbone\.input_size=0"),
        ("sphere20", {"input_size": [112, 96, 3]}, r"backbone\.input_size=\[112,96,3\]"),
        ("vit_t", {"mask_ratio": 1.0}, r"backbone\.mask_ratio=1(\.0)?: must"),
        ("vit_t", {"heads": 7}, r"backbone\.heads=7: must divide the width of a token, 256"),
        ("vit_t", {"patch": 113}, r"backbone\.patch=113: must"),
        ("vit_t", {"drop_path": 1.0}, r"backbone\.drop_path=1(\.0)?: must"),
        ("mbf", {"dropout": 0.1}, r"backbone\.dropout=0\.1: no such setting; .*input_size"),
        ("iresnet5", {}, r"backbone=iresnet5: no such backbone; did you mean iresnet50\?"),
        ("timm", {}, r"backbone\.model=: must be given"),
    ],
)
def test_settings_out_of_range_are_named(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone(name, **parameters)


# -- training ------------------------------------------------------------------------------------------------


def test_dropout_is_for_training_alone() -> None:
    backbone = create_backbone("ir_50", embedding_size=8, input_size=SIZE, dropout=0.9)
    backbone.output_layer[4] = nn.Identity()  # batch norm, which also tells training from evaluation
    for module in backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    image_BCHW = images(2)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image_BCHW), backbone(image_BCHW))
        assert not torch.equal(backbone.train()(image_BCHW), backbone(image_BCHW))


def test_without_masks_the_mask_token_is_not_trained() -> None:
    """It would never get a gradient, and several processes would wait for it."""
    assert create_backbone("vit_t", mask_ratio=0.1).mask_token.requires_grad
    assert not create_backbone("vit_t", mask_ratio=0.0).mask_token.requires_grad


def test_masked_patches_come_back_as_the_mask_token() -> None:
    backbone = create_backbone("vit_t", embedding_size=8, input_size=SIZE, mask_ratio=0.5, drop_path=0.0)
    seen: list[Tensor] = []
    backbone.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    backbone.feature.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        backbone.train()(images(4))
    entering_BNE, leaving_BNE = seen[0], seen[1].view(4, 9, 256)
    assert entering_BNE.shape == (4, 4, 256)  # int(9 · (1 − 0.5)) of 3×3 patches
    masked_BN = (leaving_BNE == backbone.mask_token).all(-1)
    assert masked_BN.sum(1).tolist() == [5, 5, 5, 5]
    assert not torch.equal(masked_BN[0], masked_BN[1]) or not torch.equal(masked_BN[0], masked_BN[2])


def test_stochastic_depth_leaves_branches_out_and_keeps_the_mean() -> None:
    block = create_backbone("vit_t", input_size=SIZE, drop_path=0.5).blocks[-1]
    branch_BNE = torch.ones(4000, 1, 1)
    kept_BNE = block.train()._kept(branch_BNE)
    assert set(kept_BNE.flatten().tolist()) == {0.0, 2.0}
    assert kept_BNE.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(block.eval()._kept(branch_BNE), branch_BNE)


@pytest.mark.parametrize("name", ["mobilefacenet", "ir_50", "vit_t"])
def test_it_exports_for_any_number_of_images(built: dict[str, nn.Module], name: str) -> None:
    backbone = built[name].eval()
    batch = torch.export.Dim("N", min=1)
    program = torch.export.export(backbone, (images(2),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(5)), backbone(images(5)))


# -- cost, settings, timm ------------------------------------------------------------------------------------


def test_counting_flops_leaves_the_backbone_as_it_is() -> None:
    backbone = create_backbone("mobilefacenet", embedding_size=8, input_size=SIZE)
    backbone.conv1.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    assert multiply_adds(backbone, SIZE) > 0
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_a_flop_is_a_multiply_add() -> None:
    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5 * 16, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.convolution(x).flatten(1))

    assert multiply_adds(Known(), 4) == 3 * 5 * 9 * 16 + 5 * 16 * 7


@pytest.mark.parametrize(
    "name", ["ir_50", "ir_se_50", "iresnet18", "mbf", "mobilefacenet_relu", "resnet50", "sphere20", "vit_t"]
)
def test_costs_are_those_that_torch_counts(name: str) -> None:
    with on_meta_device():
        backbone = create_backbone(name)
    image = torch.empty(2, 3, *backbone.input_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.eval()(image)
    assert multiply_adds(backbone, backbone.input_size) == counter.get_total_flops() // 2 // 2
    own = {x.untyped_storage()._cdata for x in [*backbone.parameters(), *backbone.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = 0 if storage._cdata in own else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = backbone.train()(image)
    assert output.shape == (2, backbone.embedding_size)
    assert activation_bytes(backbone, backbone.input_size) == sum(kept.values()) // 2


@pytest.mark.parametrize("name", BACKBONES.names())
def test_its_file_holds_every_setting_at_its_default(name: str) -> None:
    folders = [folder / "backbone" for folder in (config_folder(), *plugins.config_folders())]
    files = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
    base, own = (OmegaConf.to_container(OmegaConf.load(files[n])) for n in ("base", name))
    assert own.pop("defaults") == ["base", "_self_"] and own.pop("name") == name
    assert not own.keys() & base.keys()
    assert own.pop("input_size") == "${data.size}"  # images and backbone always agree
    signature = inspect.signature(BACKBONES.builder(name)).parameters
    defaults = {key: parameter.default for key, parameter in signature.items() if key != "input_size"}
    if name == "timm":
        defaults.update(model="???", options={})
    assert own == defaults


def test_every_file_is_a_backbone() -> None:
    files = {path.stem for path in (config_folder() / "backbone").glob("*.yaml")}
    assert files <= {*BACKBONES.names(), "base"}


def test_without_timm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r"backbone=timm: timm is not installed; pip install 'facerec\[timm\]'"
    ):
        create_backbone("timm", model="resnet18")


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224"])
def test_any_timm_model_becomes_a_backbone(model: str) -> None:
    pytest.importorskip("timm")
    backbone = create_backbone("timm", model=model, embedding_size=8).train()
    assert backbone(images(2, 112, 112)).shape == (2, 8)
    names = backbone.state_dict()
    assert "norm.running_mean" in names and any(name.startswith("model.") for name in names)
    assert ("model.pos_embed" in backbone.no_weight_decay()) == model.startswith("vit")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"model": "resnet10x"},
            r"backbone\.model=resnet10x: timm has no such model; did you mean .*resnet10t",
        ),
        ({"model": "resnet10t", "options": {"colour": 1}}, r"timm cannot build it so: .*colour"),
    ],
)
def test_what_timm_does_not_know_is_named(parameters: dict[str, Any], message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        create_backbone("timm", **parameters)
