"""The registry of backbones, making one by name, and the contract of the forward pass.

Shapes: B images of C = 3 channels, H×W pixels; D is the length of the embedding.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facerec.errors import ConfigError, require
from facerec.registry import Registry

BACKBONES = Registry("backbone", "facerec.backbones")


def list_backbones(pattern: str = "*") -> list[str]:
    """Names for `create_backbone`, sorted; those that match `pattern`, as ``"ir_*"``."""
    return fnmatch.filter(BACKBONES.names(), pattern)


def create_backbone(name: str, *, embedding_size: int = 512, **parameters: Any) -> Backbone:
    """Return a freshly initialised backbone.

    Args:
        name: the published one, e.g. ``ir_50``, ``iresnet100``, ``mobilefacenet``.
        embedding_size: D, the length of the embedding.
        parameters: further settings of that family (see its module).

    Returns:
        A module from (B, 3, 112, 112) float images in [-1, 1] to (B, D) raw embeddings (not normalised).

    Raises:
        facerec.errors.ConfigError: unknown name or parameter, or a value out of range.
    """
    return BACKBONES.create(name, {"embedding_size": embedding_size, **parameters})


class Backbone(nn.Module):
    """A network from face images to embeddings.

    Families subclass it and write `_embed`; their entries of the state dict carry the published names.

    Attributes:
        foreign: prefixes of entries that published files of the family may hold besides the backbone's own,
            or lack.
        preprocessing: settings of `Preprocessing` for its published weights, where they are not the defaults.

    Args:
        embedding_size: D, 1 or more.
        input_size: height and width of the images in pixels, one number for a square.
        multiple: height and width must be multiples of this.

    Raises:
        ConfigError: for an `embedding_size` or `input_size` out of range.
    """

    foreign: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, embedding_size: int, input_size: int | Sequence[int], multiple: int = 16) -> None:
        super().__init__()
        in_range = 1 <= embedding_size < 2**31
        require(in_range, "backbone.embedding_size", embedding_size, "must be 1 or more, and below 2^31")
        self.embedding_size = embedding_size
        sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        good = len(sides) == 2 and all(multiple <= side <= 4096 and side % multiple == 0 for side in sides)
        hint = (
            f"must be a multiple of {multiple} up to 4096, or [height, width]; in training, data.size sets it"
        )
        require(good, "backbone.input_size", input_size, hint)
        self.input_size = (sides[0], sides[1])

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return raw embeddings (B, D), not normalised, of float images (B, 3, H, W) in [-1, 1].

        Raises:
            ConfigError: for images of another shape than (B, 3, \\*input_size).
        """
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3 or image_BCHW.shape[2:] != self.input_size:
            height, width = self.input_size
            raise ConfigError(
                "backbone.input_size",
                [height, width],
                f"the backbone takes images (B, 3, {height}, {width}), not {tuple(image_BCHW.shape)}; "
                "resize them or build the backbone for their size",
            )
        return self._embed(image_BCHW)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def recomputable_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Iterate over the repeated parts that may recompute their activations: modules and a method of each.

        A module names such methods in an attribute ``recomputable``.
        """
        for module in self.modules():
            for method in getattr(module, "recomputable", ()):
                yield module, method

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that never decay although they are matrices (position embeddings)."""
        return set()


def register_members(network: type[Backbone], members: Mapping[str, Any]) -> None:
    """Register the sizes of a family by name: subclasses that differ in their `stages`."""
    for name, stages in members.items():
        member = type(name, (network,), {"__module__": network.__module__, "stages": stages})
        setattr(sys.modules[network.__module__], name, member)  # where pickle looks for it
        BACKBONES.register(name)(member)


def initialise(
    network: nn.Module, draw: Callable[[Tensor], Any], *kinds: type[nn.Module], **options: Any
) -> None:
    """Draw the weights of all modules of `kinds`, by default convolutions and linear layers; biases are 0."""
    for module in network.modules():
        if isinstance(module, kinds or (nn.Conv2d, nn.Linear)):
            for name, parameter in module.named_parameters(recurse=False):
                draw(parameter, **options) if name == "weight" else nn.init.zeros_(parameter)


def projection(incoming: int, outgoing: int, stride: int) -> nn.Sequential:
    """Return the 1×1 convolution and batch norm by which a residual unit takes its input to other shapes."""
    convolution = nn.Conv2d(incoming, outgoing, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outgoing))


def require_fraction(name: str, value: float) -> None:
    """Raise `ConfigError` unless the setting `name` is 0 or more and less than 1."""
    require(0 <= value < 1, f"backbone.{name}", value, "must be 0 or more and less than 1")


def in_full_precision(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply `layers` one after the other, outside of any autocast region.

    The embedding itself is computed in float32, as the published fp16 training code does: it costs less than
    a hundredth of the network, and eight bits of mantissa would blur the cosines.
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return in_full_precision(x.float(), *layers)
    for layer in layers:
        x = layer(x)
    return x


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Set eval mode, and each submodule's own mode (frozen or not) afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Undrawn(TorchFunctionMode):
    """Leaves normal numbers undrawn; without memory torch loads its compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").endswith("normal_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Build modules on the meta device: parameters have names and sizes, no memory and no values."""
    with torch.device("meta"), _Undrawn():
        yield
