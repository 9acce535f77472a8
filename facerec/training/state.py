"""The state of a run, as its checkpoints hold it: modules, optimizer, position, random numbers, data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from facerec import __version__, distributed
from facerec.evaluation.judgement import better
from facerec.evaluation.results import Result
from facerec.heads.mechanism.sharding import Shard
from facerec.images.images import LabelledImages
from facerec.models.checkpoint import Rows


@dataclass
class Position:
    """Progress of a run, as its checkpoints hold it.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done.
        sample: samples of the present epoch that all ranks have taken.
        highest: highest accuracy of each target so far.
        best: best mean over the targets so far of the number that `eval.select` names.
        evaluated: the step of the last evaluation; −1: none yet.
        averaged: updates of the moving average of the weights.
        stage: number of the stage that the last step belonged to.
        origin: step and epoch that the schedule counts from.
    """

    step: int = 0
    epoch: int = 0
    sample: int = 0
    highest: dict[str, float] = field(default_factory=dict)
    best: float = float("-inf")
    evaluated: int = -1
    averaged: int = 0
    stage: int = 0
    origin: list[float] = field(default_factory=lambda: [0, 0.0])

    def improved(self, results: Mapping[str, Result], select: str | None) -> bool:
        """True where an evaluation is the best so far, by the number that `select` names; keeps its mean."""
        score = better(results, select, self.best)
        self.best = self.best if score is None else score
        return score is not None


def capture(
    position: Position,
    parts: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    input: Mapping[str, Any],
    faces: LabelledImages,
    began: Mapping[str, Any] | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Return the state of a run in plain containers and tensors.

    `parts` have a state_dict: backbone, head, ema, and for a resume optimizer and scaler too. Of `faces` the
    labels or names of the classes and the fingerprint are kept. `began` are the settings of the run where
    `config` are those of a stage. Of sharded tensors there are this rank's rows (see `shards_of`), or with
    `whole`, which all ranks call, all of them.
    """
    classes = faces.classes
    names = torch.from_numpy(np.array(classes)) if isinstance(classes, np.ndarray) else list(classes)
    return {
        "facerec": __version__,
        "config": dict(config),
        "input": dict(input),
        "classes": names,
        "images": len(faces),
        "fingerprint": faces.fingerprint,
        **asdict(position),
        **({} if began is None else {"began": dict(began)}),
        **{name: _state(part, whole) for name, part in parts.items()},
    }


def _state(part: Any, whole: bool) -> dict[str, Any]:
    state = part.state_dict().items()
    return {
        k: x.full_tensor() if whole and hasattr(x, "full_tensor") else distributed.local(x) for k, x in state
    }


class RandomState:
    """The random number generators of all ranks, as a part of the state.

    Ranks that a checkpoint does not know keep the generators they were seeded with.
    """

    def state_dict(self) -> dict[str, Any]:
        """All-gather the generators' states, (world size, bytes) uint8."""
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        states = zip(*distributed.all_gather_object((torch.get_rng_state(), *cuda)), strict=True)
        return {kind: torch.stack(ranks) for kind, ranks in zip(("cpu", "cuda"), states, strict=False)}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Set this rank's generators."""
        rank = distributed.rank()
        # torch reads a state from the start of its storage, so that a row of a larger one will not do.
        mine = {kind: ranks[rank].clone() for kind, ranks in states.items() if rank < len(ranks)}
        if "cpu" in mine:
            torch.set_rng_state(mine["cpu"])
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])


def shards_of(parts: Mapping[str, Any]) -> dict[str, Rows]:
    """The rows that this rank holds of sharded tensors: keys ``head/NAME``, ``backbone/NAME``, ``ema/NAME``
    and ``optimizer/INDEX``."""
    head, rank, world_size = parts["head"], distributed.rank(), distributed.world_size()
    shards: dict[str, Rows] = {f"head/{name}": tuple(head.shard) for name in head.sharded_parameters}
    for name, parameter in parts["backbone"].named_parameters():
        if hasattr(parameter, "to_local"):
            here = Shard.of(len(parameter), rank, world_size)
            shards[f"backbone/{name}"] = shards[f"ema/{name}"] = (here.start, here.stop, len(parameter))
    trained = (name.replace(".", "/", 1) for g in parts["optimizer"].param_groups for name in g["names"])
    return shards | {f"optimizer/{i}": shards[name] for i, name in enumerate(trained) if name in shards}
