"""What every backbone shares: the registry and the way to make one by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from facerec.registry import Registry

BACKBONES = Registry("backbone", "facerec.backbones")


def create_backbone(name: str, *, embedding_size: int = 512, **parameters: Any) -> nn.Module:
    """A freshly initialised backbone by its published name.

    Args:
        name: e.g. ``ir_50``, ``iresnet100``, ``mobilefacenet``.
        embedding_size: D, the length of the embedding.
        parameters: further settings of that family (see its module).

    Returns:
        A module from (B, 3, 112, 112) float pictures in [-1, 1] to (B, D) raw embeddings (not normalised).

    Raises:
        facerec.errors.ConfigError: unknown name or parameter, or a value out of range.
    """
    return BACKBONES.create(name, {"embedding_size": embedding_size, **parameters})
