"""What a checkpoint of a run holds, and how a run takes it up again exactly where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from facerec import __version__, checkpoint
from facerec.errors import CheckpointError


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done.
        sample: samples of the present epoch that all processes together have taken.
        highest: highest accuracy of each target so far.
        best: best mean accuracy over the targets so far.
    """

    step: int = 0
    epoch: int = 0
    sample: int = 0
    highest: dict[str, float] = field(default_factory=dict)
    best: float = -1.0


def capture(
    position: Position,
    parts: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    input: Mapping[str, Any],
    classes: Sequence[str] | np.ndarray,
) -> dict[str, Any]:
    """The state of a run in plain containers and tensors.

    Args:
        parts: what has a state_dict: backbone, head, and for a resume optimizer and scaler too.
        config: the run's composed configuration in plain values.
        input: the preprocessing.
        classes: original label or name of each class.
    """
    names = torch.from_numpy(np.array(classes)) if isinstance(classes, np.ndarray) else list(classes)
    return {
        "facerec": __version__,
        "config": dict(config),
        "input": dict(input),
        "classes": names,
        **asdict(position),
        **{name: part.state_dict() for name, part in parts.items()},
        "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_states()},
    }


def restore(path: Path, parts: Mapping[str, Any], *, config: Mapping[str, Any], classes: int) -> Position:
    """Put the state of a run back, and return where it stood.

    Raises:
        CheckpointError: not a checkpoint to resume from, or one of a run with other settings.
    """
    state = checkpoint.load(path)
    missing = [name for name in ("step", "config", *parts) if name not in state]
    if missing:
        raise CheckpointError(
            f"trainer.resume={path}: has no {', '.join(missing)}; resume from a last.pt "
            "(backbone.pretrained takes the weights of any checkpoint)"
        )
    refuse_other_run(path, state["config"], config)
    if len(state["classes"]) != classes:
        raise CheckpointError(
            f"trainer.resume={path}: knows {len(state['classes'])} identities, the data has {classes}"
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"trainer.resume={path}: its {name} does not fit: {reason}") from error
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return Position(**{name: state[name] for name in asdict(Position())})


def refuse_other_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where the settings that make a run what it is differ from the checkpoint's."""
    differing = []
    for section, keys in (
        ("backbone", None),
        ("head", None),
        ("data", ("kind", "name")),
        ("optimizer", ("name",)),
    ):
        old, new = before.get(section, {}), now.get(section, {})
        for key in keys or sorted({*old, *new} - {"pretrained", "memory", "block_size"}):
            if old.get(key) != new.get(key):
                differing.append(f"{section}.{key}={new.get(key)} (was {old.get(key)})")
    if before.get("seed") != now.get("seed"):
        differing.append(f"seed={now.get('seed')} (was {before.get('seed')})")
    if differing:
        raise CheckpointError(
            f"trainer.resume={path}: belongs to a run with other settings: {', '.join(differing)}; "
            "give it the same ones, or another output_dir"
        )


def freeze(backbone: nn.Module, *, frozen: bool, batch_norm: bool) -> None:
    """Put the backbone into training mode, as far as it is to be trained."""
    backbone.train(not frozen)
    if batch_norm:
        for module in backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
