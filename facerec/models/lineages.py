"""Lineages: what checkpoints of training programs call the network and its entries, a table each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_EPS = 1e-5  # of batch norm in our backbones


class Lineage(NamedTuple):
    """A family of training programs.

    Attributes:
        wrappers: keys under which a checkpoint keeps the network.
        names: regular expressions within the names of entries, and what our backbones have there. They are
            used for files that have a name for each of them. Names of a network that is known under others
            need no table: `structure` finds them.
        marks: regular expressions that each find an entry in a file of this lineage, and in no other's.
        preprocessing: settings of `Preprocessing` for marked files, where they are not those of the backbone.
        eps: of batch norms in marked files: regular expressions within their names; else it is torch's, 1e-5.
        networks: settings of `create_backbone` that marked files may fit besides the registered backbones.
    """

    wrappers: tuple[str, ...] = ()
    names: Mapping[str, str] = {}
    marks: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = {}
    eps: Mapping[str, float] = {}
    networks: Sequence[Mapping[str, Any]] = ()


def _edgeface(model: str, **options: Any) -> dict[str, Any]:
    return {"name": "timm", "model": f"edgenext_{model}", "batch_norm": False, **options}


LINEAGES: dict[str, Lineage] = {
    "facerec": Lineage(("backbone",)),
    "InsightFace": Lineage(("state_dict_backbone",)),
    # Averaged weights are the ones that are published, where a file has both.
    "averaged": Lineage(("state_dict_ema", "model_ema", "ema_state_dict", "ema")),
    "Lightning": Lineage(("state_dict",)),
    "others": Lineage(("model", "model_state_dict", "net", "net_state_dict")),
    "MagFace": Lineage(  # reads images with OpenCV and divides by 255
        marks=(r"^(module\.)?features\.(module\.)?layer1\.0\.bn1\.weight$",),
        preprocessing={"channels": "bgr", "mean": 0.0, "std": 255.0},
        eps={"": 2e-5},
    ),
    "CVLface": Lineage(
        marks=(r"^net\.input_layer\.0\.weight$", r"^net\.body\.0\."), preprocessing={"channels": "rgb"}
    ),
    "CVLface's ViT": Lineage(
        marks=(r"^(model\.)?net\.patch_embed\.proj\.weight$", r"^(model\.)?net\.feature\.0\.weight$"),
        networks=(
            {"name": "vit_s", "patch": 8, "mlp_ratio": 5},
            {"name": "vit_b", "patch": 8, "mlp_ratio": 3, "heads": 16},
        ),
    ),
    "Xiaoccer's MobileFaceNet": Lineage(
        marks=(r"linear7\.conv\.weight$", r"dw_conv1\.conv\.weight$"), preprocessing={"std": 128.0}
    ),
    "SFace's MobileFaceNet": Lineage(  # multiplies by 0.078125 = 1 / 12.8
        marks=(r"conv_6dw7_7\.conv2d\.weight$", r"pre_fc1\.weight$"),
        preprocessing={"std": 12.8},
        eps={r"batchnorm\.": 1e-3, r"fc1\.": 2e-5},
    ),
    "EdgeFace": Lineage(
        marks=(r"stages\.0\.blocks\.0\.conv_dw\.weight$", r"stem\.0\.weight$", r"head\.fc\.(weight|bias)$"),
        networks=(
            _edgeface("xx_small"),
            _edgeface("x_small"),
            _edgeface("x_small", low_rank=0.6),
            _edgeface("small"),
            _edgeface("small", low_rank=0.5),
            _edgeface("base"),
        ),
    ),
}


def wrapper_rank(keys: Iterable[str]) -> int:
    """Return 2 where a key wraps averaged weights, 1 where one is another wrapper of a lineage, else 0."""
    keys = set(keys)
    if keys & {*LINEAGES["averaged"].wrappers}:
        return 2
    return int(any(key in lineage.wrappers for lineage in LINEAGES.values() for key in keys))


def lineage_of(entries: Iterable[str]) -> tuple[str, Lineage] | None:
    """Return the lineage whose marks are all among the names of the entries, with its name."""
    entries = list(entries)
    for name, lineage in LINEAGES.items():
        if lineage.marks and all(any(re.search(mark, entry) for entry in entries) for mark in lineage.marks):
            return name, lineage
    return None


def usual_preprocessing(entries: Iterable[str]) -> tuple[str, Mapping[str, Any]]:
    """Return words for the log and the preprocessing of the lineage of these entries, if it is known."""
    found = lineage_of(entries)
    return ("", {}) if found is None else (f" as {found[0]} writes them", found[1].preprocessing)


def in_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of our backbones, and for batch norms with their `eps`."""
    found = lineage_of(weights)
    if found is not None:
        weights = {entry: _of_our_eps(entry, value, found[1].eps) for entry, value in weights.items()}
    for names in (lineage.names for lineage in LINEAGES.values()):
        if names and all(any(re.search(theirs, entry) for entry in weights) for theirs in names):
            return {_renamed(entry, names): tensor for entry, tensor in weights.items()}
    return dict(weights)


def _of_our_eps(entry: str, value: Tensor, eps: Mapping[str, float]) -> Tensor:
    """A running variance such that torch's eps gives what theirs gives."""
    if not entry.endswith("running_var") or not value.is_floating_point():
        return value
    given = next((one for name, one in eps.items() if re.search(name, entry)), _EPS)
    return value if given == _EPS else value.float() + (given - _EPS)


def _renamed(entry: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        entry = re.sub(theirs, ours, entry)
    return entry
