"""Parameters with and without weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facerec.backbones import create_backbone
from facerec.training.optimizers import OptimizerSettings, parameter_groups, split_by_decay
from tests.backbone_families import FAMILIES


def weightless(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_backbone(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trainable_parameter_is_in_one_group(name: str) -> None:
    backbone = weightless(name)
    decayed, plain = split_by_decay(backbone)
    trainable = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert decayed.keys() | plain.keys() == trainable
    assert not decayed.keys() & plain.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_only_matrices_and_kernels_decay(name: str) -> None:
    decayed, plain = split_by_decay(weightless(name))
    assert all(parameter.ndim > 1 for parameter in decayed.values())
    tokens = {"pos_embed", "mask_token"} if name == "vit_t" else set()
    assert {n for n, parameter in plain.items() if parameter.ndim > 1} == tokens


def test_slopes_biases_and_norms_are_named() -> None:
    _, plain = split_by_decay(weightless("ir_50"))
    assert {"input_layer.1.weight", "input_layer.2.weight", "output_layer.3.bias"} <= plain.keys()
    _, plain = split_by_decay(weightless("sphere20"))
    assert {"conv1_1.bias", "relu1_1.weight", "fc5.bias"} <= plain.keys()


def test_a_recipe_may_decay_everything_and_slow_a_module_down() -> None:
    modules = {"backbone": weightless("mbf"), "head": nn.Linear(4, 5, bias=False)}
    settings = OptimizerSettings(weight_decay=0.1, decay_all=True)
    groups = parameter_groups(settings, modules, {"backbone": 0.5})
    assert {(group["lr_scale"], group["weight_decay"]) for group in groups} == {(0.5, 0.1), (1.0, 0.1)}
    assert sum(len(group["params"]) for group in groups) == len([*modules["backbone"].parameters()]) + 1


def test_a_recipe_may_decay_everything_but_norms() -> None:
    network = weightless("ir_50")
    decayed, plain = split_by_decay(network, biases=True)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {id(p) for p in plain.values()} == {id(p) for norm in norms for p in norm.parameters()}
    assert {"input_layer.2.weight", "output_layer.3.bias"} <= decayed.keys()


def test_frozen_parameters_are_in_no_group() -> None:
    backbone = weightless("mbf").requires_grad_(False)
    assert parameter_groups(OptimizerSettings(), {"backbone": backbone}, {}) == []
