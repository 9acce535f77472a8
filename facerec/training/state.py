"""What a checkpoint of a run holds, and how a run takes it up again exactly where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facerec import __version__, checkpoint, processes, sharded_checkpoint
from facerec.checkpoint import is_count
from facerec.data.faces import FaceSet
from facerec.errors import CheckpointError
from facerec.sharded_checkpoint import Rows
from facerec.training import comparison


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data done.
        sample: samples of the present epoch that all processes together have taken.
        highest: highest accuracy of each target so far.
        best: best mean accuracy over the targets so far.
        evaluated: the step of the last evaluation; −1: none yet.
    """

    step: int = 0
    epoch: int = 0
    sample: int = 0
    highest: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    evaluated: int = -1


def capture(
    position: Position,
    parts: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    input: Mapping[str, Any],
    faces: FaceSet,
) -> dict[str, Any]:
    """The state of a run in plain containers and tensors.

    Args:
        parts: what has a state_dict: backbone, head, and for a resume optimizer and scaler too.
        config: the run's composed configuration in plain values.
        input: the preprocessing.
        faces: what is trained on; the checkpoint keeps the original label or name of each class, and what
            tells other images.
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
        **{name: part.state_dict() for name, part in parts.items()},
    }


class RandomState:
    """The random numbers to come, of every process; has a state_dict as whatever else a checkpoint keeps.

    A run that goes on with more processes than it was saved with leaves the new ones as they were seeded.
    """

    def state_dict(self) -> dict[str, Any]:
        """The generators' states, (processes, bytes) uint8; every process must call this."""
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        states = zip(*processes.each((torch.get_rng_state(), *cuda)), strict=True)
        return {kind: torch.stack(each) for kind, each in zip(("cpu", "cuda"), states, strict=False)}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Put this process's generators back."""
        rank = processes.rank()
        # torch reads a state from the start of its storage, so that a row of a larger one will not do.
        mine = {kind: each[rank].clone() for kind, each in states.items() if rank < len(each)}
        if "cpu" in mine:
            torch.set_rng_state(mine["cpu"])
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])


def held_rows(parts: Mapping[str, Any]) -> dict[str, Rows]:
    """Which rows this process has of what is shared out: keys ``head/NAME`` and ``optimizer/INDEX``."""
    head, optimizer = parts["head"], parts["optimizer"]
    place = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    held = {f"head/{name}": tuple(head.shard) for name in head.shared_out}
    for name in head.shared_out:
        held[f"optimizer/{place.get(id(getattr(head, name)))}"] = tuple(head.shard)
    return held


def split(
    captured: Mapping[str, Any], held: Mapping[str, Rows]
) -> tuple[dict[str, Tensor], dict[str, Rows], dict[str, Any]]:
    """A captured state as its large tensors by name, the rows held of those shared out, and the rest."""
    rest = {name: value for name, value in captured.items() if name not in ("backbone", "head")}
    tensors = {
        f"{part}/{name}": tensor for part in ("backbone", "head") for name, tensor in captured[part].items()
    }
    rows = {key: which for key, which in held.items() if key in tensors}
    for index, values in captured["optimizer"]["state"].items():
        which = held.get(f"optimizer/{index}")
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
                if which and value.ndim:  # momentum and moments are shared out as their parameter is
                    rows[f"optimizer/{index}/{name}"] = which
    rest["optimizer"] = {**captured["optimizer"], "state": {}}
    return tensors, rows, rest


def restore(
    path: Path, parts: Mapping[str, Any], config: Mapping[str, Any], faces: FaceSet
) -> tuple[Position, dict[str, str]]:
    """Put the state of a run back.

    Args:
        path: a file, or a folder that several processes have written. The number of processes may be another
            one now.
        parts: what `capture` was given.
        config: the present run's.
        faces: the present run's.

    Returns:
        Where the run stood, and what is otherwise than it was, by the setting's name: ``0.01 (was 0.1)``.

    Raises:
        CheckpointError: not a checkpoint to resume from, or one of a run with other settings or data.
    """
    folder = path.is_dir()
    state = sharded_checkpoint.rest(path) if folder else checkpoint.load(path)
    missing = [
        name
        for name in ("step", "config", *parts)
        if name not in state and not (folder and name in ("backbone", "head")) and name != "meter"
    ]
    if missing:
        raise CheckpointError(
            f"trainer.resume={path}: has no {', '.join(missing)}; resume from a last.pt "
            "(backbone.pretrained takes the weights of any checkpoint)"
        )
    _require_kinds(path, state)
    changes = comparison.changes(path, state, config=config, faces=faces)
    places = _places(path, parts["optimizer"], state["optimizer"]["param_groups"])
    if folder:
        tensors = _read_tensors(path, parts, places)
        state["backbone"], state["head"], state["optimizer"]["state"] = tensors
    else:
        kept = state["optimizer"]["state"]
        state["optimizer"]["state"] = {place: kept[old] for old, place in places.items() if old in kept}
        _cut(state, held_rows(parts))
    state["optimizer"] = _completed(parts["optimizer"], state["optimizer"]["state"])
    for name, part in parts.items():
        if name not in state or (name == "scaler" and not state[name]):
            continue  # no meter in those of earlier versions; no scaler at work
        try:
            part.load_state_dict(state[name])
        # A part meets in a state that is none whatever it trips over; nothing has been trained yet.
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"trainer.resume={path}: its {name} does not fit: {reason}") from error
    position = Position(**{name: state[name] for name in asdict(Position()) if name in state})
    if {"eval.targets", *comparison.MEASURE} & changes.keys():
        position.best, position.evaluated = -1.0, -1  # of a mean over other things
    if set(comparison.MEASURE) & changes.keys():
        position.highest = {}
    return position, changes


def _require_kinds(path: Path, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the parts of a state are of the types that `capture` gives them."""
    classes, optimizer = state.get("classes"), state["optimizer"]
    slots = optimizer.get("state") if isinstance(optimizer, dict) else None
    groups: Any = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    right = {
        **{name: is_count(state.get(name)) for name in ("step", "epoch", "sample")},
        "images": is_count(state.get("images", 0)),
        "evaluated": is_count(state.get("evaluated", -1), least=-1),
        "best": isinstance(state.get("best"), int | float),
        "classes": isinstance(classes, Tensor) or _all(classes, str),
        "optimizer": isinstance(slots, dict)
        and _all(list(slots.values()), dict)
        and _all(groups, dict)
        and all(isinstance(one.get("params"), list) and _all(one.get("names", []), str) for one in groups),
        **{
            name: isinstance(state.get(name, {}), dict) and _all(list(state.get(name, {})), str)
            for name in ("config", "highest", "backbone", "head", "scaler", "random")
        },
    }
    right["random"] = right["random"] and all(
        getattr(one, "ndim", 0) == 2 for one in state["random"].values()
    )
    for name in (name for name, good in right.items() if not good):
        raise CheckpointError(
            f"trainer.resume={path}: its {name} is not what a run saves there; give one of its last.pt"
        )


def _all(values: Any, kind: type) -> bool:
    """True for a list of objects of one type."""
    return isinstance(values, list) and all(isinstance(one, kind) for one in values)


def _places(
    path: Path, optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]
) -> dict[int, int]:
    """The number of each parameter in a checkpoint's optimizer, and its number now; they differ where the
    backbone was frozen and is not, or the reverse.
    """
    now = [name for group in optimizer.param_groups for name in group["names"]]
    then = [name for group in before for name in group.get("names", ())]
    if not then and sum(len(group["params"]) for group in before) == len(now):
        then = now  # an earlier version's, which has no names
    if not then:
        raise CheckpointError(f"trainer.resume={path}: its optimizer is one of other parameters")
    place = {name: number for number, name in enumerate(now)}
    return {number: place[name] for number, name in enumerate(then) if name in place}


def _completed(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A state_dict for `optimizer` as it is set now; the momentum of what was frozen begins at zero."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(isinstance(one.get("momentum_buffer"), Tensor) for one in state.values()):
        for number, parameter in enumerate(parameters):
            state.setdefault(number, {"momentum_buffer": torch.zeros_like(parameter)})
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _read_tensors(
    folder: Path, parts: Mapping[str, Any], places: Mapping[int, int]
) -> tuple[Any, Any, dict[int, dict[str, Tensor]]]:
    """This process's tensors of a checkpoint folder: of the backbone, the head and the optimizer's state."""
    held = held_rows(parts)
    whole: dict[str, Any] = {name: parts[name].state_dict() for name in ("backbone", "head")}
    parameters = [p for group in parts["optimizer"].param_groups for p in group["params"]]
    whole["optimizer"] = {"state": {}}
    named: dict[str, str] = {}  # as the folder calls it
    place_of = {str(number): place for number, place in places.items()}
    for key, size in sharded_checkpoint.sizes(folder).items():
        part, _, rest = key.partition("/")
        index, _, name = rest.partition("/")
        if part != "optimizer" or index not in place_of:
            continue
        place = place_of[index]
        parameter = parameters[place]
        per_element = size[1:] == parameter.shape[1:] and len(size) == parameter.ndim
        value = torch.zeros_like(parameter) if per_element else torch.zeros(size)
        whole["optimizer"]["state"].setdefault(place, {})[name] = value
        named[f"optimizer/{place}/{name}"] = key
    tensors, rows, _ = split(whole, held)
    sharded_checkpoint.load(
        folder,
        {named.get(key, key): tensor for key, tensor in tensors.items()},
        {named.get(key, key): which for key, which in rows.items()},
    )
    return whole["backbone"], whole["head"], whole["optimizer"]["state"]


def _cut(state: dict[str, Any], held: Mapping[str, Rows]) -> None:
    """Leave of a whole state, which one process has written, the rows that this process holds."""
    for key, (start, stop, count) in held.items():
        part, _, name = key.partition("/")
        entries = state["head"] if part == "head" else state["optimizer"]["state"].get(int(name), {})
        for entry in [name] if part == "head" else list(entries):
            value = entries[entry]
            if isinstance(value, Tensor) and value.ndim and len(value) == count:
                entries[entry] = value[start:stop].clone()


def freeze(backbone: nn.Module, *, frozen: bool, batch_norm: bool) -> None:
    """Put the backbone into training mode, as far as it is to be trained."""
    backbone.train(not frozen)
    if batch_norm:
        for module in backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
