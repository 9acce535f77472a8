"""Weights of any lineage: find them in what a file holds, find their backbone, load all of them or none."""

from __future__ import annotations

import functools
import inspect
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from facerec.backbones.base import BACKBONES, Backbone, create_backbone, on_meta_device
from facerec.errors import CheckpointError, ConfigError
from facerec.models.lineages import in_our_names, is_wrapper
from facerec.pickles.stand_ins import Inert, shown

log = logging.getLogger(__name__)

# A counter that old and converted files lack; batch norm with a momentum never reads it.
COUNTER = "num_batches_tracked"
INPUT_SIZES = (112, 224, (112, 96))

Shapes = dict[str, tuple[int, ...]]


def tensors_in(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """The tensors by our names in what a checkpoint holds, out of their wrappers.

    Of several mappings with tensors, one under a wrapper of `LINEAGES` is taken, else the one with most.
    """
    found = {keys: mapping for keys, mapping in _mappings(content) if _count_tensors(mapping)}
    if not found:
        held = _few(
            f"{key} (of {value.name})" if isinstance(value, Inert) else key for key, value in content.items()
        )
        raise CheckpointError(
            f"{where}: has no weights; a state dict is wanted, this holds {held or 'nothing'}"
        )
    keys = max(found, key=lambda keys: (is_wrapper(keys[-1:]), _count_tensors(found[keys])))
    if keys:
        log.info("%s: the weights under %s are taken", where, shown(".".join(keys)))
    return in_our_names({name: value for name, value in found[keys].items() if isinstance(value, Tensor)})


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """`content` and the mappings in it, with their keys: names only, as numbers are an optimizer's."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while todo:
        keys, mapping = todo.pop(0)
        if id(mapping) not in seen and all(isinstance(key, str) for key in mapping):
            seen.add(id(mapping))
            yield keys, mapping
            todo += [((*keys, key), value) for key, value in mapping.items() if isinstance(value, Mapping)]


def _count_tensors(mapping: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in mapping.values())


def read_safetensors(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file, and the words in its metadata; errors begin with `where`."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{where}: reading it needs safetensors; pip install 'facerec[safetensors]'"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{where}: not a safetensors file, or a damaged one ({error})") from error


# Load ------------------------------------------------------------------------------------------------------


def load_weights(
    backbone: nn.Module,
    weights: Mapping[str, Tensor],
    where: str,
    misfit: str = "does not fit the backbone",
) -> None:
    """Load `weights` into `backbone`, which stays as it is unless they fit.

    Raises:
        CheckpointError: entries are missing, left over or of another shape; it begins with `where: misfit`.
    """
    match = _require_fit(backbone, weights, where, misfit)
    state = backbone.state_dict()
    state |= {name: weights[match.prefix + name] for name in state if match.prefix + name in weights}
    backbone.load_state_dict(state)
    left_out = f"; left out: {_few(match.outside)}" if match.outside else ""
    log.info("%s: %d entries loaded%s", where, len(state), left_out)


def fitted_backbone(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    misfit: str = "does not fit the backbone",
) -> Backbone:
    """Create the backbone of `settings` with `weights`; it takes memory only when names and sizes fit.

    Args:
        settings: of `create_backbone`; others are ignored.

    Raises:
        CheckpointError: as `load_weights` does, or the settings are of no backbone that could be.
        ConfigError: a setting is unknown or out of range.
    """
    _require_fit(_drafted(settings, weights, where), weights, where, misfit)
    backbone = create_backbone(**network_settings(settings))
    load_weights(backbone, weights, where, misfit)
    return backbone


def _require_fit(backbone: nn.Module, weights: Mapping[str, Tensor], where: str, misfit: str) -> _Match:
    match = _match(weights, _shapes(backbone), getattr(backbone, "foreign", ()))
    if not match.fits:
        raise CheckpointError(f"{where}: {misfit}: {match}{_hint(weights)}")
    return match


def network_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the network itself, without those that would fetch its first weights."""
    known = inspect.signature(BACKBONES.builder(settings["name"])).parameters.keys() - {"imagenet"}
    return {key: value for key, value in settings.items() if key == "name" or key in known}


def _drafted(settings: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> Backbone:
    """A backbone on the meta device, given up when it grows larger than any that the weights are for."""
    left = 8 * len(weights) + 2000  # modules and parameters

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CheckpointError(
                f"{where}: its {len(weights):,} entries are too few for backbone={settings['name']} with the "
                "settings that it names"
            )

    register = nn.modules.module
    hooks = [
        register.register_module_module_registration_hook(count),
        register.register_module_parameter_registration_hook(count),
    ]
    try:
        with on_meta_device():
            return create_backbone(**network_settings(settings))
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # of sizes that overflow
        raise CheckpointError(
            f"{where}: backbone={settings['name']} cannot be built with the settings that it names "
            f"({type(error).__name__})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


# Recognise -------------------------------------------------------------------------------------------------


def recognise(weights: Mapping[str, Tensor], names: Iterable[str] | None = None) -> dict[str, Any] | None:
    """Find the known backbone that a state dict fits, by the names and shapes of its entries.

    Args:
        weights: tensors by name, with or without a common prefix.
        names: the backbones to try; None: all.

    Returns:
        Settings for `create_backbone` (name, embedding_size, input_size), or None.
    """
    for name in BACKBONES.names() if names is None else names:
        parameters = inspect.signature(BACKBONES.builder(name)).parameters.values()
        if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
            continue  # timm: any network at all
        expected, foreign = _known(name, 512, 112)
        match = _match(weights, expected, foreign)
        if match.missing or match.unexpected:
            continue
        other, _ = _known(name, 513, 112)
        sized = next(entry for entry in expected if expected[entry] != other[entry])
        embedding_size = next(iter(weights[match.prefix + sized].shape), 0)
        for input_size in INPUT_SIZES if embedding_size else ():
            try:
                known = _known(name, embedding_size, input_size)
            except ConfigError:  # it takes no images of this shape
                continue
            if _match(weights, *known).fits:
                size = input_size if isinstance(input_size, int) else list(input_size)
                return {"name": name, "embedding_size": embedding_size, "input_size": size}
    return None


class _Match(NamedTuple):
    """A comparison of the entries of a file with those of a network; str lists the differences."""

    prefix: str
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]
    outside: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape or type", self.misshapen),
        )
        return "; ".join(f"{len(names)} {what} ({_few(names)})" for what, names in parts if names)


def _match(weights: Mapping[str, Tensor], expected: Shapes, foreign: Iterable[str]) -> _Match:
    """Compare under the prefix below which most of the expected entries are."""
    prefix = _prefix(weights, expected)
    found = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
    outside = [name for name in weights if not name.startswith(prefix)]
    outside += [prefix + name for name in sorted(found) if name.startswith(tuple(foreign))]
    misshapen = []
    for name, shape in expected.items():
        value = weights[prefix + name] if name in found else None
        if value is not None and (given := tuple(value.shape)) != shape:
            misshapen.append(f"{name} {list(given)} for {list(shape)}")
        elif value is not None and not (value.is_floating_point() or name.endswith(COUNTER)):
            misshapen.append(f"{name} of {value.dtype}")  # quantised numbers, or complex ones
    return _Match(
        prefix,
        [name for name in expected if name not in found and not name.endswith(COUNTER)],
        sorted(name for name in found - expected.keys() if not name.startswith(tuple(foreign))),
        misshapen,
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


@functools.cache
def _known(name: str, embedding_size: int, input_size: int | tuple[int, int]) -> tuple[Shapes, Iterable[str]]:
    """Entries of a backbone, built without memory, and the prefixes of others in its files."""
    size = input_size if isinstance(input_size, int) else list(input_size)
    with on_meta_device():
        backbone = create_backbone(name, embedding_size=embedding_size, input_size=size)
    return _shapes(backbone), backbone.foreign


def _shapes(backbone: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in backbone.state_dict().items()}


def _hint(weights: Mapping[str, Tensor]) -> str:
    known = recognise(weights)
    if known is None:
        return "; it is none of the known backbones"
    settings = [f"backbone={known.pop('name')}", *(f"backbone.{key}={value}" for key, value in known.items())]
    return f"; it fits {' '.join(settings)}"


def _few(names: Iterable[object], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(shown(str(name)) for name in names[:count]) + more
