"""Lineages: what checkpoints of training programs call the network and its entries, a table each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor


class Lineage(NamedTuple):
    """A family of training programs.

    Attributes:
        wrappers: keys under which a checkpoint keeps the network.
        names: regular expressions within the names of entries, and what our backbones have there. They are
            used for files that have a name for each of them.
    """

    wrappers: tuple[str, ...]
    names: Mapping[str, str] = {}


LINEAGES: dict[str, Lineage] = {
    "facerec": Lineage(("backbone",)),
    "InsightFace": Lineage(("state_dict_backbone",)),
    "Lightning": Lineage(("state_dict",)),
    "others": Lineage(("model", "model_state_dict", "net")),
}


def is_wrapper(keys: Iterable[str]) -> bool:
    """Return True where one of the keys is a wrapper's in any lineage."""
    return any(key in lineage.wrappers for lineage in LINEAGES.values() for key in keys)


def in_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of our backbones."""
    for names in (lineage.names for lineage in LINEAGES.values()):
        if names and all(any(re.search(theirs, entry) for entry in weights) for theirs in names):
            return {_renamed(entry, names): tensor for entry, tensor in weights.items()}
    return dict(weights)


def _renamed(entry: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        entry = re.sub(theirs, ours, entry)
    return entry
