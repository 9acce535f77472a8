"""The state of a run, captured for a checkpoint and restored from one exactly, whatever the world size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from facerec import __version__, distributed
from facerec.errors import CheckpointError
from facerec.evaluation.judgement import better, suits_all
from facerec.evaluation.results import Result
from facerec.heads.mechanism.sharding import Shard
from facerec.models.checkpoint import MODULES, Checkpoint, Rows, is_counter, open_checkpoint
from facerec.training import comparison

if TYPE_CHECKING:
    from facerec.training.loop import Trainer

_OPTIONAL = ("meter", "ema")  # parts that a checkpoint need not have

Slots = dict[int, dict[str, Tensor]]
"""An optimizer's tensors by the index of their parameter and their name."""

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Progress of a run, as its checkpoints hold it.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done.
        sample: samples of the present epoch that all ranks have taken.
        highest: highest accuracy of each target so far.
        best: best mean over the targets so far of the number `judged_by`.
        judged_by: that of `eval.select`, or the one that suits all evaluations so far; empty: none yet.
        best_step: the step of the best; −1: not known.
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
    judged_by: str = ""
    best_step: int = -1
    evaluated: int = -1
    averaged: int = 0
    stage: int = 0
    origin: list[float] = field(default_factory=lambda: [0, 0.0])

    def improved(self, results: Mapping[str, Result], select: str | None) -> bool:
        """True where an evaluation is the best so far, by the number that `select` names; keeps its mean.

        Without `select`, the best counts no more once another number must judge the evaluations.
        """
        by = select or suits_all({self.judged_by, *(result.score_key for result in results.values())})
        if self.judged_by not in ("", by):
            log.info("best.pt: judged by %s from here on; the best by %s counts no more", by, self.judged_by)
            self.best = float("-inf")
        self.judged_by = by
        score = better(results, by, self.best)
        if score is not None:
            self.best, self.best_step = score, self.step
        return score is not None


def capture(trainer: Trainer, parts: Mapping[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """Return the state of a run in plain containers and tensors.

    `parts` have a state_dict: backbone, head, ema, and for a resume optimizer and scaler too. Of the images
    the labels or names of the classes and the fingerprint are kept. In a stage, ``config`` are its settings
    and ``began`` those that the run began with. Of sharded tensors there are this rank's rows (see
    `shards_of`), or with `whole`, which all ranks call, all of them.
    """
    faces, position = trainer.loader.faces, trainer.position
    classes, began = faces.classes, trainer.stages.began(position.stage)
    names = torch.from_numpy(np.array(classes)) if isinstance(classes, np.ndarray) else list(classes)
    return {
        "facerec": __version__,
        "config": dict(trainer.config),
        "input": trainer.input.to_dict(),
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


def restore(trainer: Trainer, path: Path) -> tuple[Position, dict[str, str]]:
    """Load a checkpoint into the parts of a run, whatever world size it was saved with.

    Returns:
        Where the run stood, and what has changed since, by the setting's name: ``0.01 (was 0.1)``.

    Raises:
        CheckpointError: not a checkpoint to resume from, or one of a run with other settings or data.
    """
    checkpoint = open_checkpoint(path)
    state = checkpoint.rest
    began = trainer.stages.go_to(trainer, path, state)
    parts = trainer.parts
    missing = [one for one in ("step", "config", *parts) if not (one in _OPTIONAL or checkpoint.has(one))]
    if missing:
        raise CheckpointError(
            f"trainer.resume={path}: has no {', '.join(missing)}; resume from a last.pt "
            "(backbone.pretrained takes the weights of any checkpoint)"
        )
    _require_types(path, state)
    changes = comparison.changes(path, state, config=trainer.config, faces=trainer.loader.faces, began=began)
    indices = _indices(path, parts["optimizer"], state["optimizer"]["param_groups"])
    state["optimizer"] = optimizer_state(parts["optimizer"], _load_tensors(checkpoint, parts, indices))
    for name, part in parts.items():
        if name in MODULES or name not in state or (name == "scaler" and not state[name]):
            continue  # no meter in those of earlier versions; no scaler at work
        try:
            part.load_state_dict(state[name])
        # A part fails over a wrong state in any way; nothing has been trained yet.
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"trainer.resume={path}: its {name} does not fit: {reason}") from error
    position = Position(**{name: state[name] for name in asdict(Position()) if name in state})
    if not checkpoint.has("ema"):  # it begins now, if there is one
        position.averaged = 0
        if "ema" in parts:
            parts["ema"].reset()
    measured_anew = comparison.measured_anew(changes)
    if measured_anew or "eval.targets" in changes:
        position.best, position.judged_by, position.best_step = float("-inf"), "", -1  # of other things
        position.evaluated = -1
    if measured_anew:
        position.highest = {}
    return position, changes


def _require_types(path: Path, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the parts of a state have the types that `state.capture` gives."""
    origin: Any = state.get("origin", [])
    classes, optimizer = state.get("classes"), state["optimizer"]
    groups: Any = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    mappings = {name: state.get(name, {}) for name in ("config", "highest", "scaler", "random", "began")}
    right = {
        **{name: is_counter(state.get(name)) for name in ("step", "epoch", "sample")},
        "images": is_counter(state.get("images", 0)),
        "evaluated": is_counter(state.get("evaluated", -1), least=-1),
        "averaged": is_counter(state.get("averaged", 0)),
        "best_step": is_counter(state.get("best_step", -1), least=-1),
        "judged_by": isinstance(state.get("judged_by", ""), str),
        "origin": isinstance(origin, list) and all(isinstance(one, int | float) for one in origin),
        **{name: isinstance(one, dict) and _all(list(one), str) for name, one in mappings.items()},
        "best": isinstance(state.get("best"), int | float),
        "classes": isinstance(classes, Tensor) or _all(classes, str),
        "optimizer": _all(groups, dict)
        and optimizer.get("state") == {}  # all of it were tensors, which have left it
        and all(isinstance(one.get("params"), list) and _all(one.get("names", []), str) for one in groups),
        **{name: name not in state for name in MODULES},  # tensors, which have left it
    }
    right["random"] &= right["random"] and all(getattr(r, "ndim", 0) == 2 for r in state["random"].values())
    for name in (name for name, good in right.items() if not good):
        raise CheckpointError(
            f"trainer.resume={path}: its {name} is not what a run saves there; give one of its last.pt"
        )


def _all(values: Any, kind: type) -> bool:
    """Return True for a list of objects of one type."""
    return isinstance(values, list) and all(isinstance(one, kind) for one in values)


def _indices(
    path: Path, optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]
) -> dict[int, int]:
    """The index of each parameter in a checkpoint's optimizer, and its index now.

    They differ where the backbone was frozen and is not, or the reverse.
    """
    now = [name for group in optimizer.param_groups for name in group["names"]]
    then = [name for group in before for name in group.get("names", ())]
    if not then and sum(len(group["params"]) for group in before) == len(now):
        then = now  # an earlier version's, which has no names
    if not then:
        raise CheckpointError(f"trainer.resume={path}: its optimizer is one of other parameters")
    index = {name: i for i, name in enumerate(now)}
    return {i: index[name] for i, name in enumerate(then) if name in index}


def _load_tensors(checkpoint: Checkpoint, parts: Mapping[str, Any], indices: Mapping[int, int]) -> Slots:
    """Load this rank's tensors of the modules; returns those of the optimizer, by the present indices."""
    present = shards_of(parts)
    shards = {name: rows for name, rows in present.items() if not name.startswith("optimizer/")}
    for then, now in indices.items():
        if f"optimizer/{now}" in present:
            shards[f"optimizer/{then}"] = present[f"optimizer/{now}"]
    tensors = {
        f"{section}/{name}": distributed.local(tensor)
        for section in MODULES
        if section in parts and (section != "ema" or checkpoint.has("ema"))
        for name, tensor in parts[section].state_dict().items()
    }
    parameters = [p for group in parts["optimizer"].param_groups for p in group["params"]]
    index_of = {str(then): now for then, now in indices.items()}
    slots: Slots = {}
    for name, size in checkpoint.sizes.items():
        section, index, *slot = name.split("/", 2)
        if section != "optimizer":
            if name not in tensors and (section != "ema" or "ema" in parts):
                raise CheckpointError(f"ckpt={checkpoint.path}: its {name} is none of this run's")
        elif slot and index in index_of:
            parameter = parameters[index_of[index]]
            per_element = size[1:] == parameter.shape[1:] and len(size) == parameter.ndim
            value = torch.zeros_like(parameter) if per_element else torch.zeros(size)
            slots.setdefault(index_of[index], {})[slot[0]] = tensors[name] = value
    checkpoint.fill(tensors, shards)
    return slots


def optimizer_state(optimizer: torch.optim.Optimizer, slots: Slots) -> dict[str, Any]:
    """A state_dict for `optimizer` as it is set now; the momentum of what was frozen begins at zero."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any("momentum_buffer" in values for values in slots.values()):
        for index, parameter in enumerate(parameters):
            slots.setdefault(index, {"momentum_buffer": torch.zeros_like(parameter)})
    return {"state": slots, "param_groups": optimizer.state_dict()["param_groups"]}
