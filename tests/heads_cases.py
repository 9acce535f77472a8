"""Heads of the registry, the settings that tests try of them, and small float64 ones with their batches."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from facerec.heads import HEADS, create_head
from facerec.heads.base import ClassHead, Head
from tests.heads_reference import REFERENCES

CLASSES, SIZE = 7, 5

CLASS_HEADS = [
    name
    for name, builder in ((name, HEADS.builder(name)) for name in HEADS.names())
    if isinstance(builder, type) and issubclass(builder, ClassHead)
]
STATEFUL = [
    name for name in CLASS_HEADS if list(create_head(name, num_classes=2, embedding_size=2).buffers())
]
PUBLISHED = (
    *("softmax", "normface", "l2softmax", "lsoftmax", "sphereface", "cosface", "arcface", "combined"),
    *("sface", "sface_quality", "center", "triplet", "contrastive", "adaface", "magface", "curricularface"),
    *("elasticface", "subcenter", "mvsoftmax", "circle", "sphereface2", "adacos", "arcneg", "npcface"),
)

# Settings besides the defaults, to be held against the reference.
CASES: dict[str, list[dict[str, Any]]] = {
    "l2softmax": [{"alpha": 3.0}],
    "cosface": [{"s": 30.0, "m": 0.4}],
    "arcface": [{"s": 8.0, "m": 1.2}, {"easy_margin": True}],
    "combined": [{"m1": 0.9, "m2": 0.4, "m3": 0.15}, {"m1": 1.35, "m2": 0.0, "m3": 0.0}],
    "sphereface": [{"m": m, "base": 0.0, "lambda_min": 0.5} for m in (1, 2, 3, 4)],
    "lsoftmax": [{"m": m, "base": 0.0, "lambda_min": 0.5} for m in (1, 2, 3, 4)],
    "sface": [{"s": 10.0, "k": 5.0, "a": 0.8, "b": 1.23}],
    "sface_quality": [{"h": 50.0, "k": 5.0, "c": 1.0}],
    "center": [{"lambda_c": 0.5}],
    "adaface": [{"m": 0.7, "h": 20.0}],
    "magface": [{"l_a": 1.0, "u_a": 5.0, "lambda_g": 3.0}, {"l_a": 1.0, "u_a": 5.0, "easy_margin": True}],
    "curricularface": [{"s": 8.0, "m": 0.9}],
    "elasticface": [{"kind": "cos"}],
    "subcenter": [{"k": 2, "s": 8.0, "m": 0.3}],
    "mvsoftmax": [
        {"kind": "arc", "m": 0.5},
        {"adaptive": False, "easy_margin": True},
        {"kind": "arc", "m": 0.5, "t": 0.3, "easy_margin": True},
    ],
    "circle": [{"s": 16.0, "m": 0.4}],
    "sphereface2": [{"r": 30.0, "m": 0.2, "t": 1.0, "lambda_p": 0.5, "loss_weight": 50.0}],
    "adacos": [{"dynamic": False}],
    "arcneg": [{"alpha": 0.9, "sigma": 0.5}],
    "npcface": [{"m0": 0.2, "m1": 0.6, "t": 1.3, "easy_margin": False}],
}
# What differences of the loss would not find in the gradient is switched off; None: it cannot be.
CONSTANT: dict[str, dict[str, Any] | None] = {
    "adaface": {"h": 0.0},
    "npcface": {"m1": 0.0},
    **dict.fromkeys(("sface", "sface_quality", "circle", "arcneg")),
}


def expected(name: str, head: Head, x: Tensor, y: Tensor) -> Tensor:
    """The reference's loss, given the head's weights, settings and state."""
    given = {}
    for parameter in list(inspect.signature(REFERENCES[name]).parameters)[3:]:
        owner = head if hasattr(head, parameter) else head.norm
        value = getattr(owner, parameter)
        given[parameter] = value() if callable(value) and not isinstance(value, Tensor) else value
    return REFERENCES[name](x, head.weight, y, **given)


def make(name: str, **parameters: Any) -> Head:
    """A head in training mode, whose weights and biases are those of any other of the same shapes."""
    torch.manual_seed(0)
    head = create_head(name, num_classes=CLASSES, embedding_size=SIZE, **parameters).double()
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(2))
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(5))
    return head


def batch(size: int = 12, length: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = length * torch.randn(size, SIZE, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(CLASSES, (size,), generator=generator)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x, retain_graph=True)[0]
