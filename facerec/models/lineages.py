"""Lineages: how weights of a training program are known, and what is other in them than in ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_EPS = 1e-5  # of batch norm in our backbones


class Lineage(NamedTuple):
    """A family of training programs.

    Attributes:
        name: for messages.
        marks: regular expressions that each find an entry in a file of this lineage, and in no other's. Names
            of a network that is known under others need no table: `structure` finds them.
        preprocessing: settings of `Preprocessing`, where they are not those of the backbone.
        eps: of batch norms, by regular expressions within their names; else it is torch's, 1e-5.
        networks: settings of `create_backbone` that files may fit besides the registered backbones.
    """

    name: str = ""
    marks: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = {}
    eps: Mapping[str, float] = {}
    networks: Sequence[Mapping[str, Any]] = ()


def _edgeface(model: str, **options: Any) -> dict[str, Any]:
    return {"name": "timm", "model": f"edgenext_{model}", "batch_norm": False, **options}


LINEAGES = (
    Lineage(
        "MagFace",  # reads images with OpenCV and divides by 255
        (r"^(module\.)?features\.(module\.)?layer1\.0\.bn1\.weight$",),
        preprocessing={"channels": "bgr", "mean": 0.0, "std": 255.0},
        eps={"": 2e-5},
    ),
    Lineage(
        "CVLface", (r"^net\.input_layer\.0\.weight$", r"^net\.body\.0\."), preprocessing={"channels": "rgb"}
    ),
    Lineage(
        "CVLface's ViT",
        (r"^(model\.)?net\.patch_embed\.proj\.weight$", r"^(model\.)?net\.feature\.0\.weight$"),
        networks=(
            {"name": "vit_s", "patch": 8, "mlp_ratio": 5},
            {"name": "vit_b", "patch": 8, "mlp_ratio": 3, "heads": 16},
        ),
    ),
    Lineage(
        "Xiaoccer's MobileFaceNet",
        (r"linear7\.conv\.weight$", r"dw_conv1\.conv\.weight$"),
        preprocessing={"std": 128.0},
    ),
    Lineage(
        "SFace's MobileFaceNet",  # multiplies by 0.078125 = 1 / 12.8
        (r"conv_6dw7_7\.conv2d\.weight$", r"pre_fc1\.weight$"),
        preprocessing={"std": 12.8},
        eps={r"batchnorm\.": 1e-3, r"fc1\.": 2e-5},
    ),
    Lineage(
        "EdgeFace",
        (r"stages\.0\.blocks\.0\.conv_dw\.weight$", r"stem\.0\.weight$", r"head\.fc\.(weight|bias)$"),
        networks=(
            _edgeface("xx_small"),
            _edgeface("x_small"),
            _edgeface("x_small", low_rank=0.6),
            _edgeface("small"),
            _edgeface("small", low_rank=0.5),
            _edgeface("base"),
        ),
    ),
)


def lineage_of(entries: Iterable[str]) -> Lineage:
    """Return the lineage whose marks are all among the names of the entries; none: one without a name."""
    entries = list(entries)
    for lineage in LINEAGES:
        if all(any(re.search(mark, entry) for entry in entries) for mark in lineage.marks):
            return lineage
    return Lineage()


def usual_preprocessing(entries: Iterable[str]) -> tuple[str, Mapping[str, Any]]:
    """Return words for the log and the preprocessing of the lineage of these entries, if it is known."""
    found = lineage_of(entries)
    return f" as {found.name} writes them" if found.name else "", found.preprocessing


def of_our_eps(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, with running variances such that torch's eps gives what the lineage's gives."""
    given, result = lineage_of(weights).eps, dict(weights)
    for entry, value in weights.items():
        if entry.endswith("running_var") and value.is_floating_point():
            eps = next((eps for name, eps in given.items() if re.search(name, entry)), _EPS)
            result[entry] = value if eps == _EPS else value.float() + (eps - _EPS)
    return result
