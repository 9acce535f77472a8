"""Weights of other lineages: read a file, find the backbone in it, and load it whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from facerec import checkpoint, sharded_checkpoint
from facerec.backbones.base import BACKBONES, Backbone, create_backbone, without_memory
from facerec.errors import CheckpointError
from facerec.inert import Inert, shown

log = logging.getLogger(__name__)

# Where checkpoints keep the network: ours, InsightFace's, Lightning's, and the usual others.
WRAPPERS = ("backbone", "state_dict_backbone", "state_dict", "model", "model_state_dict", "net")
# A counter that old and converted files lack; batch norm with a momentum never reads it.
COUNTER = "num_batches_tracked"
INPUT_SIZES = (112, 224, (112, 96))

Shapes = dict[str, tuple[int, ...]]


def load_pretrained(backbone: nn.Module, path: Path | str) -> None:
    """Load the weights in `path` into `backbone`.

    Accepted are checkpoints of facerec, state dicts of the published layouts (bare or as a training program
    wraps them, behind any prefix such as ``module.`` or ``model.``) and safetensors files. What lies outside
    of the backbone (a head's class weights) is left out, and the log says so.

    Args:
        backbone: what to load into; unchanged unless everything fits.
        path: a file; it is read as data and nothing in it is run.

    Raises:
        CheckpointError: no such file, unreadable, or entries that are missing, left over or of another shape.
    """
    where = f"backbone.pretrained={path}"
    load_weights(backbone, read_weights(path, where), where)


def load_weights(backbone: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """`load_pretrained` of tensors that were read already; `where` is how messages name their file."""
    match = _matching(backbone, weights)
    if not match.fits:
        raise CheckpointError(f"{where}: does not fit the backbone: {match}{_mend(weights)}")
    state = backbone.state_dict()
    for name in state:
        if match.prefix + name in weights:
            state[name] = weights[match.prefix + name]
    backbone.load_state_dict(state)
    left_out = f"; left out: {_few(match.outside)}" if match.outside else ""
    log.info("%s: %d entries loaded%s", where, len(state), left_out)


def misfit(backbone: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Why `load_weights` would not load them, or nothing; a backbone on the meta device will do."""
    return str(_matching(backbone, weights))


def of_network(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the network itself, without those that say where its weights started from: a file that
    brings weights sends nobody to the network for others."""
    known = inspect.signature(BACKBONES.builder(settings["name"])).parameters.keys() - {"imagenet"}
    return {key: value for key, value in settings.items() if key == "name" or key in known}


def draft(settings: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> Backbone:
    """A backbone on the meta device, where it takes no memory; given up when it grows larger than any that
    the `weights` are for.

    Raises:
        CheckpointError: it cannot be built; it begins with `where`.
        ConfigError: a setting is unknown or out of range.
    """
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
    hook = register.register_module_module_registration_hook(count)
    try:
        with _each_parameter(count), without_memory():
            return create_backbone(**of_network(settings))
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # of sizes that overflow
        raise CheckpointError(
            f"{where}: backbone={settings['name']} cannot be built with the settings that it names "
            f"({type(error).__name__})"
        ) from error
    finally:
        hook.remove()


@contextlib.contextmanager
def _each_parameter(see: Callable[..., None]) -> Iterator[None]:
    """Call `see(module, name, parameter)` for each parameter that a module gets."""
    hook = nn.modules.module.register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        hook.remove()


def read_weights(path: Path | str, where: str | None = None) -> dict[str, Tensor]:
    """The tensors by name in a checkpoint, state dict or safetensors file, out of their wrappers.

    Args:
        path: the file.
        where: how messages name it; ``ckpt=PATH`` by default.

    Raises:
        CheckpointError: no such file, unreadable, or without tensors.
    """
    path = Path(path)
    where = where or f"ckpt={path}"
    if path.suffix == ".safetensors" and path.is_file():
        return tensors_in(read_safetensors(path, where)[0], where)
    try:
        folder = sharded_checkpoint.is_one(path)
        content = sharded_checkpoint.load_backbone(path) if folder else checkpoint.load(path)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"ckpt={path}", where, 1)) from error
    return tensors_in(content, where)


def tensors_in(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """The tensors by name in what a checkpoint file holds, out of their wrappers, whatever their names.

    Of several dicts with tensors, that under a name of `WRAPPERS` is taken, else the one with most of them.

    Raises:
        CheckpointError: there are none.
    """
    while inner := next((content[key] for key in WRAPPERS if _most_tensors(content.get(key))[1]), None):
        content = inner
    keys, _, weights = _most_tensors(content)
    if not weights:
        held = _few(
            f"{key} (of {value.name})" if isinstance(value, Inert) else key for key, value in content.items()
        )
        raise CheckpointError(
            f"{where}: has no weights; a state dict is wanted, this holds {held or 'nothing'}"
        )
    if keys:
        log.info("%s: the weights under %s are taken", where, shown(".".join(keys)))
    return {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}


def _most_tensors(content: Any) -> tuple[tuple[str, ...], int, Mapping[Any, Any]]:
    """Of `content` and the mappings in it, the one that holds most tensors: its keys, how many, and itself.

    Only names lead on: under numbers are the states of an optimizer.
    """
    best: tuple[tuple[str, ...], int, Mapping[Any, Any]] = ((), 0, {})
    todo: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while todo:
        keys, one = todo.pop(0)
        if not isinstance(one, Mapping) or id(one) in seen or not all(isinstance(key, str) for key in one):
            continue
        seen.add(id(one))
        count = sum(isinstance(value, Tensor) for value in one.values())
        if count > best[1]:
            best = (keys, count, one)
        todo += [((*keys, key), value) for key, value in one.items() if isinstance(value, Mapping)]
    return best


def recognise(weights: Mapping[str, Tensor], names: Iterable[str] | None = None) -> dict[str, Any] | None:
    """Which known backbone a state dict fits, by the names and shapes of its entries.

    Args:
        weights: tensors by name, with or without a common prefix, as `read_weights` gives them.
        names: the backbones to try; None: all.

    Returns:
        Settings for `create_backbone` (name, embedding_size, input_size), or None.
    """
    for name in BACKBONES.names() if names is None else names:
        parameters = inspect.signature(BACKBONES.builder(name)).parameters.values()
        if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
            continue  # timm: any network at all
        try:
            with _each_parameter(_only_shapes_of(weights)):
                expected, foreign = _known(name, 512, 112)
        except _OtherNetworkError:
            continue
        match = _match(weights, expected, foreign)
        if match.missing or match.unexpected:
            continue
        other, _ = _known(name, 513, 112)
        sized = next(entry for entry in expected if expected[entry] != other[entry])
        shape = weights[match.prefix + sized].shape
        embedding_size = shape[0] if shape else 0
        if embedding_size == 0:
            continue
        for input_size in INPUT_SIZES:
            expected, foreign = _known(name, embedding_size, input_size)
            if _match(weights, expected, foreign).fits:
                size = input_size if isinstance(input_size, int) else list(input_size)
                return {"name": name, "embedding_size": embedding_size, "input_size": size}
    return None


class _OtherNetworkError(Exception):
    """A network that is being built is not that of the weights."""


def _only_shapes_of(weights: Mapping[str, Tensor], spare: int = 16) -> Callable[..., None]:
    """For `_each_parameter`: gives a network up once more than `spare` of its parameters, which may depend on
    the sizes of embedding and image, have a shape that no entry has left: drawing all of it takes long."""
    left = Counter(tuple(value.shape) for value in weights.values())

    def see(_: nn.Module, __: str, parameter: Tensor | None) -> None:
        nonlocal spare
        if parameter is None:
            return
        left[tuple(parameter.shape)] -= 1
        spare -= left[tuple(parameter.shape)] < 0
        if spare < 0:
            raise _OtherNetworkError

    return see


class _Match(NamedTuple):
    """How the entries of a file compare with those of a network; an error message lists the differences."""

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


def _matching(backbone: nn.Module, weights: Mapping[str, Tensor]) -> _Match:
    return _match(weights, _shapes(backbone.state_dict()), getattr(backbone, "foreign", ()))


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
    """Entries of a backbone, built without memory, and the prefixes of what its files hold besides."""
    size = input_size if isinstance(input_size, int) else list(input_size)
    with without_memory():
        backbone = create_backbone(name, embedding_size=embedding_size, input_size=size)
    return _shapes(backbone.state_dict()), backbone.foreign


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def _mend(weights: Mapping[str, Tensor]) -> str:
    known = recognise(weights)
    if known is None:
        return "; it is none of the known backbones"
    settings = [f"backbone={known.pop('name')}"]
    settings += [f"backbone.{key}={value}" for key, value in known.items()]
    return f"; it fits {' '.join(settings)}"


def _few(names: Iterable[object], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(shown(str(name)) for name in names[:count]) + more


def read_safetensors(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file, and the words in its metadata.

    Raises:
        CheckpointError: it is none, or a damaged one, or the package is missing; it begins with `where`.
    """
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
