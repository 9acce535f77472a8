"""YAML files whose aliases (``*name``) may not multiply without end."""

from __future__ import annotations

import itertools
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from facerec.errors import UserError

_ENTRIES = 100_000  # of one file, its aliases written out; ours have less than a hundred


def require_bounded(path: Path) -> None:
    """Raise `UserError` for a file that stands for more than `_ENTRIES` entries, YAML's errors for others."""
    with path.open("rb") as file:  # which names itself in YAML's errors
        aliases = b"*" in file.read()
        file.seek(0)
        node = yaml.compose(file, Loader=yaml.SafeLoader) if aliases else None
    number = _written_out(node, {}) if node is not None else 0
    if number > _ENTRIES:
        raise UserError(
            f"the configuration cannot be read: {path}: stands for {number:.2g} entries, its "
            f"aliases (*name) repeating each other; at most {_ENTRIES:,}: write out what is meant"
        )


def _written_out(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the entries of a YAML node with all aliases written out; an alias is the node that it names."""
    if id(node) not in sizes:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = itertools.chain(*parts) if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]
