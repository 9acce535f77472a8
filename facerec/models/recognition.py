"""Recognise the known backbone that weights are of, by names or by structure; else name the nearest one."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from facerec.backbones.base import BACKBONES, create_backbone, on_meta_device
from facerec.errors import ConfigError, setting_text
from facerec.models import structure
from facerec.models.lineages import lineage_of
from facerec.models.structure import COUNTER, shapes_of
from facerec.pickles.stand_ins import shown

INPUT_SIZES = (112, 224, (112, 96))

Shapes = dict[str, tuple[int, ...]]
Settings = Mapping[str, Any]


def network_settings(settings: Settings) -> dict[str, Any]:
    """The settings of the network itself, without those that would fetch its first weights."""
    known = inspect.signature(BACKBONES.builder(settings["name"])).parameters.keys() - {"imagenet"}
    return {key: value for key, value in settings.items() if key == "name" or key in known}


def recognise(
    weights: Mapping[str, Tensor],
    names: Iterable[str] | None = None,
    *,
    folded: bool = False,
    size: tuple[int, int] | None = None,
) -> dict[str, Any] | None:
    """Find the known backbone that a state dict fits: by names and shapes of its entries, else by structure.

    Args:
        weights: tensors by name, with or without a common prefix.
        names: the backbones to try; None: all.
        folded: the weights are of an ONNX network (`structure.matches`), which fits if it does in any way.
        size: of its images (height, width); None: one of the usual sizes.

    Returns:
        Settings for `create_backbone` (name, embedding_size, input_size, …), or None, also where several fit
        by structure.
    """
    candidates = list(_candidates(weights, names))
    for settings in candidates:
        expected, foreign = _known(settings, 512, 112)
        match = compare(weights, expected, foreign)
        if match.missing or match.unexpected:
            continue
        other, _ = _known(settings, 513, 112)
        sized = next(entry for entry in expected if expected[entry] != other[entry])
        embedding_size = next(iter(weights[match.prefix + sized].shape), 0)
        for input_size, known in _of_all_sizes(settings, embedding_size, size) if embedding_size else ():
            if compare(weights, *known).fits:
                return _settings(settings, embedding_size, input_size)
    parts = [theirs for _, theirs in structure.parts(weights)]
    fitting = (_by_structure(weights, parts, settings, folded, size) for settings in candidates)
    found = [known for known in fitting if known is not None]
    return found[0] if len(found) == 1 else None


def _settings(known: _Settings, embedding_size: int, input_size: int | tuple[int, int]) -> dict[str, Any]:
    size = input_size if isinstance(input_size, int) else list(input_size)
    return {**dict(known), "embedding_size": embedding_size, "input_size": size}


def _candidates(weights: Iterable[str], names: Iterable[str] | None) -> Iterator[_Settings]:
    """Settings of the backbones that need none, and those that a lineage names."""
    for name in BACKBONES.names() if names is None else names:
        parameters = inspect.signature(BACKBONES.builder(name)).parameters.values()
        if not any(parameter.default is inspect.Parameter.empty for parameter in parameters):
            yield (("name", name),)
    for settings in lineage_of(weights).networks:
        wanted = names is None or settings["name"] in names
        if wanted and (settings["name"] != "timm" or _has_timm()):
            yield tuple(settings.items())


def _has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None


def _by_structure(
    weights: Mapping[str, Tensor],
    parts: list[list[structure.Leaf]],
    settings: _Settings,
    folded: bool,
    size: tuple[int, int] | None,
) -> dict[str, Any] | None:
    """The settings with the sizes under which the order and the shapes of entries fit in one way."""
    ours = structure.leaves(_known(settings, 512, 112)[0])
    for theirs in parts:
        missing = _fixed(settings) - Counter(leaf.key for leaf in theirs)
        if len(theirs) > len(ours) or not structure.were_folded(missing, theirs, folded):
            continue
        widths = dict.fromkeys(leaf.key[1][0] for leaf in reversed(theirs) if len(leaf.key[1]) == 2)
        for embedding_size in widths:
            for input_size, (known, _) in _of_all_sizes(settings, embedding_size, size):
                if structure.could_fit(theirs, structure.leaves(known), folded=folded):
                    found = _settings(settings, embedding_size, input_size)
                    with on_meta_device():
                        backbone = create_backbone(**found)
                    ways = len(structure.matches(weights, backbone, folded=folded))
                    if ways == 1 or (ways and folded):
                        return found
    return None


def nearest(weights: Mapping[str, Tensor]) -> str:
    """Name the known backbone that is nearest to weights that fit none, and what differs; else all.

    Of a lineage whose networks are timm's, where that is not installed, name the package.
    """
    lineage = lineage_of(weights)
    if any(one["name"] == "timm" for one in lineage.networks) and not _has_timm():
        return f", but are of {lineage.name}, whose networks are timm's: pip install 'facerec[timm]'"
    best: tuple[float, str] = (0.0, "")
    theirs = Counter(leaf.key for leaf in structure.leaves(shapes_of(weights)))
    for settings in _candidates(weights, None):
        match = compare(weights, *_known(settings, 512, 112))
        expected = _known(settings, 512, 112)[0]
        common = len(expected) - len(match.missing) - len(match.misshapen)
        best = max(best, (common / (len(expected) + len(match.unexpected)), f"{_shown(settings)}: {match}"))
        ours = Counter(leaf.key for leaf in structure.leaves(expected))
        alike = (ours & theirs).total() / (ours | theirs).total()
        differing = [
            f"{(one - other).total()} {what} ({few(map(_layer, one - other), 2)})"
            for what, one, other in (("missing", ours, theirs), ("more in the file", theirs, ours))
            if one - other
        ]
        # Names say more than shapes, so at the same part in common they come first.
        best = max(best, (0.9 * alike, f"{_shown(settings)}, by shapes: {', '.join(differing)}"))
    return f"; the nearest is {best[1]}" if best[0] > 0.2 else f" ({', '.join(BACKBONES.names())})"


def _shown(settings: _Settings) -> str:
    return " ".join(str(value) for value in dict(settings).values())


def _layer(key: tuple[str, tuple[int, ...]]) -> str:
    role, shape = key
    kind = {1: "vector", 2: "linear or 1×1"}.get(len(shape), "conv")
    return f"{'batch norm' if role == 'running_mean' else kind} {'×'.join(map(str, shape))}"


class Match(NamedTuple):
    """A comparison of the entries of a file with those of a network; str lists the differences.

    Attributes:
        unscaled: weights and biases of batch norms that the file has without them, so 1 and 0.
        outside: entries of the file that are of other modules.
    """

    prefix: str
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    unscaled: list[str]
    outside: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        found = (self.missing, self.unexpected, self.misshapen)
        parts = zip(("missing", "unexpected", "of another shape or type"), found, strict=True)
        return "; ".join(f"{len(names)} {what} ({few(names)})" for what, names in parts if names)


def compare(weights: Mapping[str, Tensor], expected: Shapes, foreign: Iterable[str]) -> Match:
    """Compare under the prefix below which most of the expected entries are."""
    prefix = _prefix(weights, expected)
    found = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
    foreign = tuple(foreign)
    outside = [name for name in weights if not name.startswith(prefix)]
    outside += [prefix + name for name in sorted(found - expected.keys()) if name.startswith(foreign)]
    misshapen = []
    for name, shape in expected.items():
        value = weights[prefix + name] if name in found else None
        if value is not None and (given := tuple(value.shape)) != shape:
            misshapen.append(f"{name} {list(given)} for {list(shape)}")
        elif value is not None and not (value.is_floating_point() or name.endswith(COUNTER)):
            misshapen.append(f"{name} of {value.dtype}")  # quantised numbers, or complex ones
    absent = [name for name in expected if name not in found]
    missing = [name for name in absent if not (name.endswith(COUNTER) or name.startswith(foreign))]
    unscaled = []
    for name in [name.removesuffix(".weight") for name in missing if name.endswith(".weight")]:
        if f"{name}.bias" in missing and f"{name}.running_mean" in found:
            unscaled += [f"{name}.weight", f"{name}.bias"]
    return Match(
        prefix,
        [name for name in missing if name not in unscaled],
        sorted(name for name in found - expected.keys() if not name.startswith(foreign)),
        misshapen,
        unscaled,
        outside,
    )


def _prefix(names: Iterable[str], expected: Shapes) -> str:
    """The prefix, ending with a dot or empty, under which most of the `expected` entries are."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in expected:
                found["".join(f"{part}." for part in parts[:i])] += 1
    return max(found, key=lambda prefix: (found[prefix], -len(prefix), prefix), default="")


_Settings = tuple[tuple[str, Any], ...]


def _of_all_sizes(
    settings: _Settings, embedding_size: int, size: tuple[int, int] | None
) -> Iterator[tuple[Any, tuple[Shapes, Any]]]:
    """The entries of a backbone for a size of images, or for the usual ones."""
    for input_size in INPUT_SIZES if size is None else [size[0] if size[0] == size[1] else size]:
        try:
            known = _known(settings, embedding_size, input_size)
        except ConfigError:  # it takes no images of this shape
            continue
        yield input_size, known


@functools.cache
def _fixed(settings: _Settings) -> Counter[tuple[str, structure.Shape]]:
    """The modules of a backbone that are the same for all sizes of embeddings and images."""
    fixed = Counter(leaf.key for leaf in structure.leaves(_known(settings, 512, 112)[0]))
    for input_size in INPUT_SIZES[1:]:
        with contextlib.suppress(ConfigError):  # it takes no images of this shape
            return fixed & Counter(
                leaf.key for leaf in structure.leaves(_known(settings, 513, input_size)[0])
            )
    return Counter()


@functools.cache
def _known(
    settings: _Settings, embedding_size: int, input_size: int | tuple[int, int]
) -> tuple[Shapes, Iterable[str]]:
    """Entries of a backbone, built without memory, and the prefixes of others in its files."""
    with on_meta_device():
        backbone = create_backbone(**_settings(settings, embedding_size, input_size))
    return shapes_of(backbone.state_dict()), backbone.foreign


def hint(
    weights: Mapping[str, Tensor], where: str, *, folded: bool = False, size: tuple[int, int] | None = None
) -> str:
    """Say which known backbone weights fit, in settings as they are typed beside that of `where`, their file.

    The other arguments are those of `recognise`.
    """
    known = recognise(weights, folded=folded, size=size)
    if known is None:
        return f"is none of the known backbones{nearest(weights) if folded else ''}"
    settings = [f"backbone={known.pop('name')}"]
    if where.startswith("backbone."):  # a run, whose images have the size of its backbone
        known["data.size"] = known.pop("input_size")
    else:  # the sizes follow from the weights
        del known["input_size"], known["embedding_size"]
    settings += [typed(key if "." in key else f"backbone.{key}", value) for key, value in known.items()]
    return f"fits {' '.join(settings)}"


def typed(key: str, value: object) -> str:
    """Return a setting as it is typed in a shell."""
    return shlex.quote(f"{key}={setting_text(value)}")


def few(names: Iterable[object], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(shown(str(name)) for name in names[:count]) + more
