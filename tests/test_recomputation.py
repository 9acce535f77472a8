"""Recomputed activations: the same training to the bit, in less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from facerec.backbones import create_backbone
from facerec.backbones.base import Backbone
from facerec.backbones.recomputation import recompute_activations
from facerec.cli.mistakes import config_folder
from facerec.errors import ConfigError
from facerec.training.run import assemble
from tests.backbone_families import RECOMPUTABLE, slow_but

# What is random besides.
RANDOM: dict[str, dict[str, Any]] = {"iresnet18": {"dropout": 0.3}, "vit_t": {"drop_path": 0.5}}
QUICK = ("iresnet18", "mobilefacenet", "sphere20", "vit_t")


def two_alike(name: str) -> tuple[Backbone, Backbone]:
    """The same backbone plain and recomputing."""
    torch.manual_seed(0)
    plain = create_backbone(name, embedding_size=8, input_size=32, **RANDOM.get(name, {})).train()
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frugal = copy.deepcopy(plain)
    recompute_activations(frugal)
    return plain, frugal


def train(backbone: Backbone, steps: int = 2, dtype: torch.dtype | None = None) -> tuple[Tensor, int]:
    """The last embeddings after some backward passes, and the bytes the last one had saved for it."""
    torch.manual_seed(1)
    image_BCHW = torch.randn(3, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    for _ in range(steps):
        saved: dict[int, int] = {}

        def note(x: Tensor, saved: dict[int, int] = saved) -> Tensor:
            if x.untyped_storage().data_ptr() not in parameters:
                saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
        with hooks, torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            embedding_BD = backbone(image_BCHW)
        embedding_BD.square().sum().backward()
    return embedding_BD.detach(), sum(saved.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", slow_but(QUICK, RECOMPUTABLE))
def test_training_is_the_same_to_the_bit_and_saves_less(name: str, dtype: torch.dtype | None) -> None:
    plain, frugal = two_alike(name)
    expected_BD, held = train(plain, dtype=dtype)
    embedding_BD, held_now = train(frugal, dtype=dtype)
    assert torch.equal(embedding_BD, expected_BD)
    for (key, parameter), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        if parameter.requires_grad and parameter.grad is not None:
            assert torch.equal(parameter.grad, other.grad), key
    for (key, buffer), other in zip(plain.named_buffers(), frugal.named_buffers(), strict=True):
        assert key == other[0] and torch.equal(buffer, other[1]), key  # running statistics: one update a step
    assert held_now < 0.6 * held
    assert list(plain.state_dict()) == list(frugal.state_dict())


def test_random_numbers_go_on_as_without() -> None:
    plain, frugal = two_alike("vit_t")
    after = []
    for backbone in (plain, frugal):
        train(backbone)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_evaluation_and_frozen_batch_norm_are_untouched() -> None:
    plain, frugal = two_alike("iresnet18")
    for backbone in (plain, frugal):
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    before = copy.deepcopy(frugal.state_dict())
    train(plain)
    train(frugal)
    for key, value in frugal.state_dict().items():
        if "layer" in key and "running" in key:
            assert torch.equal(value, before[key])
    image_BCHW = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(image_BCHW), frugal.eval()(image_BCHW))


def test_a_copy_recomputes_with_its_own_weights() -> None:
    _, frugal = two_alike("iresnet18")
    double = copy.deepcopy(frugal)
    with torch.no_grad():
        for parameter in frugal.parameters():
            parameter.zero_()
    assert train(double)[0].abs().sum() > 0


def test_a_backbone_without_blocks_says_so() -> None:
    class Plain(Backbone):
        pass

    with pytest.raises(
        ConfigError, match=r"trainer\.checkpoint_activations=true: Plain has no repeated blocks"
    ):
        recompute_activations(Plain(8, 32))


def test_the_setting_reaches_the_backbone(tmp_path: Path) -> None:
    folder = str(config_folder())
    with initialize_config_dir(folder, version_base=None):
        composed = compose(
            "train",
            overrides=[
                "backbone=mobilefacenet",
                "data=synthetic",
                "data.size=16",
                "data.identities=2",
                "data.images=4",
                "eval.targets=[]",
                "trainer.batch_size=4",
                "trainer.checkpoint_activations=true",
                f"output_dir={tmp_path}",
            ],
        )
    config: Any = OmegaConf.to_container(composed, resolve=True)
    trainer = assemble(config, tmp_path)
    assert "forward" in vars(trainer.backbone.get_submodule("conv_23"))
    trainer.set_modes()
    for batches in trainer.batches_of_steps():
        trainer.step(batches)
    assert trainer.backbone.get_buffer("conv_23.conv.bn.num_batches_tracked") == 1
