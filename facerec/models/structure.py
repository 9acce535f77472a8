"""Weights under other names matched with a network: by topological order and shapes, taken only if unique.

The entries of a file are grouped by module, in the file's order. A match gives each of these modules one of
the network's, of the same shapes, after all that feed it (or in the network's own order of registration).
A batch norm may be missing where the layer before it has a bias instead: it was folded into that layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from facerec.backbones.base import Backbone, in_eval_mode

# A counter that old and converted files lack; batch norm with a momentum never reads it.
COUNTER = "num_batches_tracked"

_ROLES = ("weight", "bias", "running_mean", "running_var")
_DEEPEST = 8  # words of a common prefix
_MOST_PARTIAL = 64  # matches of a part of the modules that are followed at once

Shape = tuple[int, ...]
_Placed = dict[int, "Leaf | None"]


class Leaf(NamedTuple):
    """A module with parameters of its own: its name, and the shapes of its entries by their last word."""

    name: str
    shapes: Mapping[str, Shape]

    @property
    def is_norm(self) -> bool:
        """True for a batch norm."""
        return "running_mean" in self.shapes

    @property
    def key(self) -> tuple[str, Shape]:
        """What a module and its match share: the shape of the running mean, else of the weight."""
        role = "running_mean" if self.is_norm else "weight"
        return role, self.shapes.get(role, ())

    def may_hold_norm(self, folded: bool) -> bool:
        """True for a layer that may hold a batch norm: it has a bias then, or (`folded`) one of 0."""
        return not self.is_norm and ("bias" in self.shapes or (folded and len(self.key[1]) > 1))


class Found(NamedTuple):
    """Weights under the names and in the shapes of a network.

    Attributes:
        absorbed: names of its batch norms that were folded into the layer before: they pass what they get,
            plus that layer's bias.
        left_out: entries of the file that are of other modules.
        note: on what was done for that, for the log.
    """

    weights: dict[str, Tensor]
    absorbed: list[str]
    left_out: list[str]
    note: str = ""


def leaves(shapes: Mapping[str, Shape]) -> list[Leaf]:
    """Group entries by module, in the order in which the modules come first."""
    found: dict[str, dict[str, Shape]] = {}
    for entry, shape in shapes.items():
        name, _, role = entry.rpartition(".")
        if role != COUNTER:
            found.setdefault(name, {})[role] = _squeezed(shape)
    return [Leaf(name, roles) for name, roles in found.items()]


def _squeezed(shape: Shape) -> Shape:
    """A 1×1 convolution has the weights of a linear layer; slopes of PReLU may have axes of the image."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shapes of tensors, by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def matches(weights: Mapping[str, Tensor], backbone: nn.Module, *, folded: bool = False) -> list[Found]:
    """Find the entries of a backbone for weights under other names, in every way that fits.

    Args:
        weights: in the file's order; modules outside of the largest group with a common prefix may be left
            out.
        backbone: a `Backbone`, on any device, the meta device included.
        folded: batch norms may be missing behind layers without a bias, too, as ONNX leaves out biases of 0.
    """
    numbers = all(value.is_floating_point() for name, value in weights.items() if not name.endswith(COUNTER))
    if not isinstance(backbone, Backbone) or not numbers:
        return []
    ours = leaves(shapes_of(backbone.state_dict()))
    for prefix, theirs in parts(weights):
        if could_fit(theirs, ours, folded=folded):
            network = _Network.of(backbone, ours)
            left_out = [name for name in weights if not name.startswith(prefix)]
            placed = network.matches(theirs, folded)
            return [Found(*_renamed(one, network, weights, backbone), left_out) for one in placed]
    return []


def parts(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, list[Leaf]]]:
    """All modules of a file, then the most of them that share the first words of their names; the prefix."""
    prefix, theirs = "", leaves(shapes_of(weights))
    for _ in range(_DEEPEST):
        yield prefix, theirs
        first = [leaf.name.removeprefix(prefix).partition(".") for leaf in theirs]
        words = Counter(word for word, dot, _ in first if dot)
        if not words:
            return
        prefix += max(words, key=lambda word: words[word]) + "."
        theirs = [leaf for leaf in theirs if leaf.name.startswith(prefix)]


def could_fit(theirs: Sequence[Leaf], ours: Sequence[Leaf], *, folded: bool = False) -> bool:
    """Compare the modules without their order; batch norms may be missing where there are biases."""
    if any(not leaf.shapes.keys() <= {*_ROLES} for leaf in theirs):
        return False
    present, needed = (Counter(leaf.key for leaf in one) for one in (theirs, ours))
    return present <= needed and were_folded(needed - present, theirs, folded)


def were_folded(missing: Counter[tuple[str, Shape]], theirs: Sequence[Leaf], folded: bool) -> bool:
    """Return True where only batch norms are missing, and as many layers or more may hold them."""
    biased = sum(leaf.may_hold_norm(folded) for leaf in theirs)
    return missing.total() <= biased and all(role == "running_mean" for role, _ in missing)


class _Network(NamedTuple):
    """The modules of a backbone, and which of them feed each.

    Attributes:
        leaves: in the order of registration.
        before: for each the modules whose outputs it reads; None where that is not seen.
        norm_of: for each the batch norm that alone reads its output, and nothing else.
    """

    leaves: list[Leaf]
    before: list[frozenset[int]] | None
    norm_of: dict[int, int]

    @classmethod
    def of(cls, backbone: Backbone, ours: list[Leaf]) -> _Network:
        before = _data_flow(backbone, [leaf.name for leaf in ours])
        readers: dict[int, list[int]] = {}
        for i, sources in enumerate(before or []):
            for source in sources:
                readers.setdefault(source, []).append(i)
        norm_of = {
            i: norm
            for i, (norm, *others) in readers.items()
            if before and not others and ours[norm].is_norm and not ours[i].is_norm and before[norm] == {i}
        }
        return cls(ours, before, norm_of)

    def matches(self, theirs: list[Leaf], folded: bool) -> list[_Placed]:
        """Give each module one of theirs (None: folded away), in every way that fits."""
        # Some programs register the last layers first: then the order must be that of registration here.
        found = self._follow(theirs, folded, lambda i, placed: i == len(placed))
        if (before := self.before) is not None:
            found += self._follow(theirs, folded, lambda i, placed: before[i] <= placed.keys())
        return [one for i, one in enumerate(found) if one not in found[:i]]

    def _follow(
        self, theirs: list[Leaf], folded: bool, is_next: Callable[[int, _Placed], bool]
    ) -> list[_Placed]:
        like: dict[Any, list[int]] = {}
        for i, ours in enumerate(self.leaves):
            like.setdefault(ours.key, []).append(i)
        partial: list[_Placed] = [{}]
        for leaf in theirs:
            grown: list[_Placed] = []
            for placed in partial:
                for i in like.get(leaf.key, ()):
                    if i in placed or not is_next(i, placed):
                        continue
                    norm = self.norm_of.get(i)
                    if _fits(leaf, self.leaves[i], bias_moves=norm is not None):
                        grown.append({**placed, i: leaf})
                        if norm is not None and leaf.may_hold_norm(folded):
                            grown.append({**placed, i: leaf, norm: None})
            partial = grown
            if len(partial) > _MOST_PARTIAL:
                return partial[:0]
        return [placed for placed in partial if len(placed) == len(self.leaves)]


def _fits(theirs: Leaf, ours: Leaf, bias_moves: bool) -> bool:
    """Compare two modules; a bias may move into the batch norm behind, and batch norms may lack scales."""
    common = theirs.shapes.keys() & ours.shapes.keys()
    if theirs.key != ours.key or any(theirs.shapes[role] != ours.shapes[role] for role in common):
        return False
    differing = theirs.shapes.keys() ^ ours.shapes.keys()
    if theirs.is_norm and "weight" in ours.shapes:
        return differing in (set(), {"weight", "bias"})
    return not differing or (differing == {"bias"} and bias_moves)


def _renamed(
    placed: _Placed, network: _Network, weights: Mapping[str, Tensor], backbone: Backbone
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the names of the backbone, and the batch norms that absorbed a bias."""
    state = backbone.state_dict()
    result: dict[str, Tensor] = {}
    absorbed = []
    for i, ours in enumerate(network.leaves):
        if (theirs := placed[i]) is None:  # a batch norm that changes nothing
            norm: Any = backbone.get_submodule(ours.name)
            ones, zeros = torch.ones(ours.key[1]), torch.zeros(ours.key[1])
            passing = {"weight": ones, "running_var": ones - norm.eps}
            result |= {f"{ours.name}.{role}": passing.get(role, zeros) for role in ours.shapes}
            absorbed.append(ours.name)
            continue
        for role in (*ours.shapes, COUNTER):
            name, given = f"{ours.name}.{role}", weights.get(f"{theirs.name}.{role}")
            if given is not None and name in state:
                result[name] = given.reshape(state[name].shape)
        for role in ours.shapes.keys() - theirs.shapes.keys():
            result[f"{ours.name}.{role}"] = torch.full(ours.shapes[role], float(role == "weight"))
    for i, behind in network.norm_of.items():
        theirs = placed[i]
        if theirs is not None and "bias" in theirs.shapes.keys() - network.leaves[i].shapes.keys():
            bias, name = weights[f"{theirs.name}.bias"].flatten(), network.leaves[behind].name
            if placed[behind] is None:
                result[f"{name}.bias"] = bias.clone()
            else:
                result[f"{name}.running_mean"] = result[f"{name}.running_mean"] - bias
    return result, absorbed


# Data flow -------------------------------------------------------------------------------------------------


def _data_flow(backbone: Backbone, names: list[str]) -> list[frozenset[int]] | None:
    """For each module those whose outputs it reads; None if some have parts or are not called."""
    modules = [backbone.get_submodule(name) for name in names]
    if any(next(module.children(), None) is not None for module in modules):
        return None
    before: dict[int, frozenset[int]] = {}
    hooks = []
    for i, module in enumerate(modules):

        def note(_: nn.Module, given: tuple[Any, ...], result: Tensor, i: int = i) -> Tensor:
            before[i] = _sources(given)
            result.sources = frozenset({i})  # type: ignore[attr-defined]
            return result

        hooks.append(module.register_forward_hook(note))
    device = next(backbone.parameters()).device
    try:
        with torch.no_grad(), in_eval_mode(backbone), _NoteSources():
            backbone(torch.zeros(1, 3, *backbone.input_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return [before[i] for i in range(len(names))] if len(before) == len(names) else None


class _NoteSources(TorchFunctionMode):
    """Notes on each tensor of which modules' outputs it was computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = _sources((args, kwargs))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and sources:
                one.sources = sources | _sources(one)  # type: ignore[attr-defined]
        return result


def _sources(value: Any) -> frozenset[int]:
    return frozenset().union(*(getattr(one, "sources", ()) for one in tree_leaves(value)))
