"""The smallest backbone of every registered family, from here or a plugin, for tests of what all promise."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from typing import Any

import pytest

from facerec.backbones import BACKBONES, create_backbone
from facerec.backbones.base import Backbone, on_meta_device


def _families() -> dict[str, Backbone]:
    smallest: dict[object, tuple[int, str, Backbone]] = {}
    for name in BACKBONES.names():
        builder = BACKBONES.builder(name)
        settings = inspect.signature(builder).parameters
        if any(setting.default is setting.empty for setting in settings.values()):
            continue  # timm: any network at all
        base = getattr(builder, "__base__", Backbone)
        with on_meta_device():
            backbone = create_backbone(name)
        size = sum(parameter.numel() for parameter in backbone.parameters())
        family = builder if base is Backbone else base
        smallest[family] = min(smallest.get(family, (size, name, backbone)), (size, name, backbone))
    return {name: backbone for _, name, backbone in smallest.values()}


_FOUND = _families()
FAMILIES = sorted(_FOUND)
RECOMPUTABLE = [name for name in FAMILIES if next(_FOUND[name].recomputable_parts(), None)]
PUBLISHED_FAMILIES = (  # those held against the published networks, and traced by the compiler
    *("adaface_ir_18", "ir_50", "ir_se_50", "iresnet18", "mbf", "mobilefacenet", "resnet50", "sphere20"),
    "vit_t",
)


def slow_but(quick: Collection[str], names: Iterable[str]) -> list[Any]:
    """Parameters of a test, those that are not quick for the slow suite."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]
