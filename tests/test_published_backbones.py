"""Backbones are the published networks: entries, sizes, and the embeddings the published code computes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerec.backbones import BACKBONES, create_backbone
from facerec.backbones.flops import multiply_adds
from tests.backbone_families import PUBLISHED_FAMILIES, slow_but

# Parameters and state-dict entries at 512-d and 112×112, counted on the published code, and GFLOPs: those of
# InsightFace's table for its networks and their likes, of the papers' layer tables for the others.
PUBLISHED = {
    "ir_50": (43_574_976, 349, 6.3),
    "ir_101": (65_129_792, 674, 12.1),
    "ir_152": (70_737_600, 687, 12.3),
    "ir_se_50": (43_797_696, 397, 6.3),
    "ir_se_101": (65_502_016, 772, 12.1),
    "ir_se_152": (71_148_736, 787, 12.3),
    "adaface_ir_18": (24_020_352, 179, 2.6),
    "adaface_ir_34": (34_134_080, 323, 4.5),
    "adaface_ir_50": (43_585_600, 467, 6.3),
    "adaface_ir_101": (65_150_912, 917, 12.1),
    "iresnet18": (24_025_600, 187, 2.6),
    "iresnet34": (34_139_328, 331, 4.5),
    "iresnet50": (43_590_848, 475, 6.3),
    "iresnet100": (65_156_160, 925, 12.1),
    "iresnet200": (118_833_920, 1807, 23.5),
    "resnet50": (40_290_880, 330, 1.1),
    "resnet101": (59_283_008, 636, 2.0),
    "resnet152": (74_926_656, 942, 2.95),
    "mobilefacenet": (1_200_512, 333, 0.22),
    "mobilefacenet_relu": (1_197_696, 307, 0.234),
    "mbf": (2_059_520, 333, 0.45),
    "sphere20": (24_505_664, 62, 2.04),
    "sphere36": (34_613_824, 110, 3.89),
    "sphere64": (50_035_520, 194, 7.13),
    "sfnet20": (24_500_992, 42, 2.04),
    "sfnet20_bn": (24_506_688, 127, 2.04),
    "sfnet36": (34_605_440, 74, 3.89),
    "sfnet36_bn": (34_614_848, 223, 3.89),
    "sfnet64": (50_020_864, 130, 7.13),
    "sfnet64_bn": (50_036_544, 391, 7.13),
    "vit_t": (19_137_792, 150, 1.5),
    "vit_s": (76_023_296, 150, 5.7),
    "vit_b": (113_833_472, 282, 11.4),
    "vit_l": (255_684_352, 282, 25.3),
}

# What the published code of each network computes from the weights of `fill` and the images of `images`.
GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "published_backbones.json").read_text())


def weightless(name: str, **parameters: Any) -> nn.Module:
    with torch.device("meta"):
        return create_backbone(name, **parameters)


def images(count: int, height: int = 32, width: int = 32) -> Tensor:
    values = np.random.default_rng(0).random((count, 3, height, width), dtype=np.float32)
    return torch.from_numpy(values) * 2 - 1


def fill(state: dict[str, Tensor]) -> None:
    """Weights that depend on nothing but the names and shapes of the entries."""
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        draw = np.random.default_rng(zlib.crc32(name.encode())).random(tuple(value.shape), dtype=np.float32)
        uniform = torch.from_numpy(draw)
        normed = name.removesuffix("weight") + "running_mean" in state
        if value.ndim > 1:
            value.copy_((uniform * 2 - 1) * (3 / value[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            value.copy_(0.8 + 0.4 * uniform)
        elif name.endswith("weight"):
            value.copy_(0.7 + 0.6 * uniform if normed else 0.2 + 0.4 * uniform)
        else:
            value.copy_(0.2 * uniform - 0.1)


def filled(name: str, **settings: Any) -> nn.Module:
    """A backbone in eval mode with the weights of `fill`."""
    backbone = create_backbone(name, **settings).eval()
    with torch.no_grad():
        fill(backbone.state_dict())
    return backbone


def test_every_published_name_is_there() -> None:
    assert {*PUBLISHED, "timm"} <= {*BACKBONES.names()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_entries_are_as_many_as_in_the_published_network(name: str) -> None:
    backbone = weightless(name)
    parameters, entries, _ = PUBLISHED[name]
    counted = sum(p.numel() for p in backbone.parameters()), len(backbone.state_dict())
    assert counted == (parameters, entries)


@pytest.mark.parametrize("name", slow_but(PUBLISHED_FAMILIES, GOLDEN))
def test_it_computes_what_the_published_code_computes_from_entries_of_the_same_names(name: str) -> None:
    height, width = GOLDEN[name]["input_size"]
    backbone = filled(name, input_size=[height, width])
    with torch.inference_mode():
        unit_BD = F.normalize(backbone(images(2, height, width)))
    expected = torch.tensor(GOLDEN[name]["unit_embedding"])
    torch.testing.assert_close(unit_BD[:, : expected.shape[1]], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", slow_but(PUBLISHED_FAMILIES, PUBLISHED))
def test_gflops_are_the_published_ones(name: str) -> None:
    assert multiply_adds(weightless(name)) / 1e9 == pytest.approx(PUBLISHED[name][2], rel=0.03)


def test_mobilefacenet_of_the_paper_has_a_million_parameters() -> None:
    assert sum(p.numel() for p in weightless("mobilefacenet", embedding_size=128).parameters()) == 1_003_136


def test_insightface_fixes_the_scale_of_its_embedding() -> None:
    assert not weightless("iresnet18").features.weight.requires_grad
