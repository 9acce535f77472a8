"""``timm``: any model of that library, its embedding batch-normalised as in ArcFace (1801.07698).

EdgeFace (2307.01838) is timm's EdgeNeXt without that batch norm, of low rank in some sizes.
"""

from __future__ import annotations

import difflib
import importlib
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, in_full_precision, require_fraction
from facerec.errors import ConfigError, require

# Options of timm.create_model by which a file or the network is read; the settings in a checkpoint must not.
_ELSEWHERE = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
    *("checkpoint_path", "cache_dir", "external_default_cfg"),
}


@BACKBONES.register("timm")
class TimmBackbone(Backbone):
    """A model of timm whose classifier is the linear layer of the embedding, and a batch norm after it.

    Args:
        model: timm's name, e.g. ``convnext_atto``; its entries lie below ``model.``.
        embedding_size: D.
        dropout: timm's ``drop_rate``, 0 … <1.
        input_size: pixels; models made for one size only are built for this one.
        imagenet: start from the weights that timm publishes; downloads them.
        batch_norm: normalise the embedding over the batch.
        low_rank: make each linear layer but the embedding's the product of two, whose rank is this part of
            the smaller side (EdgeFace's γ), 0 … 1; null: leave them whole.
        options: further keyword arguments of ``timm.create_model``, e.g. ``{drop_path_rate: 0.1}``.

    Raises:
        ConfigError: timm is not installed, has no such model, or the model does not take these options.
    """

    def __init__(
        self,
        model: str,
        embedding_size: int = 512,
        dropout: float = 0.0,
        input_size: int | list[int] = 112,
        imagenet: bool = False,
        batch_norm: bool = True,
        low_rank: float | None = None,
        options: dict | None = None,
    ) -> None:
        super().__init__(embedding_size, input_size, multiple=1)
        require_fraction("dropout", dropout)
        in_range = low_rank is None or 0 < low_rank <= 1
        require(in_range, "backbone.low_rank", low_rank, "must be more than 0 and at most 1, or null")
        timm = _timm(model)
        for option in _ELSEWHERE & (options or {}).keys():
            hint = "takes weights from elsewhere; backbone.imagenet and backbone.pretrained are for that"
            raise ConfigError(f"backbone.options.{option}", "…", hint)
        given: dict[str, Any] = {"drop_rate": dropout} if dropout else {}
        pretrained_cfg = timm.get_pretrained_cfg(model)
        if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
            given["img_size"] = self.input_size
        # Built without memory to try the settings out, a model has nowhere to put published weights.
        published = imagenet and torch.get_default_device().type != "meta"
        try:
            self.model: nn.Module = timm.create_model(
                model, pretrained=published, num_classes=embedding_size, **{**given, **(options or {})}
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError("backbone.model", model, f"timm cannot build it so: {reason}") from error
        if low_rank is not None:
            _factorise(self.model, low_rank)
        self.norm = nn.BatchNorm1d(embedding_size) if batch_norm else nn.Identity()

    def recomputable_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """The innermost modules of timm's own kinds of which lists and sequences hold several."""
        containers = (
            part for part in self.model.modules() if isinstance(part, nn.Sequential | nn.ModuleList)
        )
        parts = [part for container in containers for part in container]
        own = Counter(type(part) for part in parts if not type(part).__module__.startswith("torch."))
        repeated = [part for part in parts if own[type(part)] > 1]
        every = set(repeated)
        for part in repeated:  # stages, too, are repeated, and hold repeated blocks
            if not any(inner is not part and inner in every for inner in part.modules()):
                yield part, "forward"

    def no_weight_decay(self) -> set[str]:
        exempt = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in exempt()}

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        return in_full_precision(self.model(image_BCHW), self.norm)


class LowRank(nn.Module):
    """A linear layer as the product of two; the entry names are EdgeFace's."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(layer.in_features, rank, bias=False)
        self.linear2 = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x))


def _factorise(module: nn.Module, fraction: float) -> None:
    """Put `LowRank` in place of the linear layers, but for those in a child called head."""
    for name, child in module.named_children():
        if "head" in name:
            continue
        if isinstance(child, nn.Linear):
            rank = max(2, int(min(child.in_features, child.out_features) * fraction))
            setattr(module, name, LowRank(child, rank))
        else:
            _factorise(child, fraction)


def _timm(model: str) -> ModuleType:
    """The library, imported only here; `ConfigError` where it is missing or does not know `model`."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        hint = "timm is not installed; pip install 'facerec[timm]'"
        raise ConfigError("backbone", "timm", hint) from error
    if not timm.is_model(model):
        similar = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "timm.list_models() names them all"
        raise ConfigError("backbone.model", model, f"timm has no such model; {hint}")
    return timm
