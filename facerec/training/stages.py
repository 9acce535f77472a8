"""Stages of a run: settings that change at a step or an epoch, and the parts of the run that follow them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from facerec import distributed
from facerec.backbones.base import on_meta_device
from facerec.errors import CheckpointError, UserError, require, setting_text
from facerec.heads import HEADS, Head
from facerec.images.images import LabelledImages
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.models.checkpoint import is_counter
from facerec.settings import AtResume, flat, marks
from facerec.training import cost, fine_tuning, parallel, state
from facerec.training.optimizers import OptimizerSettings, make_optimizer, state_by_name
from facerec.training.schedules import Progress, Schedule
from facerec.training.settings import StartSettings, TrainerSettings

if TYPE_CHECKING:
    from facerec.training.loop import Trainer

log = logging.getLogger(__name__)

SECTIONS = ("head", "backbone", "data", "optimizer", "schedule")  # that a stage may change, in part
_BACKBONE = [name for name, mark in marks(StartSettings).items() if mark is AtResume.APPLIED]
_STAYS = ("head.sharded", "data.size", "optimizer.name")
_IN_EPOCH = ("augment", "mirror", "on_error", "prefetch", "workers", "decoder")  # of data, at any step
_LOADING = (*_IN_EPOCH, "shuffle", "block_size", "window", "images_per_identity", "drop_last")


class Begin(NamedTuple):
    """Where a stage begins: after so many steps of the run, or so many epochs."""

    step: int | None = None
    epoch: float | None = None

    def __str__(self) -> str:
        return f"step {self.step:,}" if self.step is not None else f"epoch {self.epoch:g}"

    def reached(self, progress: Progress) -> bool:
        """Return True from its first step on; epochs are sums of fractions, equal within rounding."""
        if self.epoch is None:
            return progress.step >= (self.step or 0)
        return progress.epoch >= self.epoch * (1 - 1e-9)


class Entry(NamedTuple):
    """An entry of `stages`: where it begins, and its settings by dotted name; ``~head.m`` leaves one out."""

    begin: Begin
    given: dict[str, Any]


@contextlib.contextmanager
def naming(number: int, begin: object) -> Iterator[None]:
    """Let errors of users name the stage that has the setting."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {number} ({begin}): {error}") from error


def entries(given: Any) -> list[Entry]:
    """Read the setting `stages`.

    Raises:
        UserError: it is no list of stages, or one of them changes what stays the same in a run.
    """
    shape = "must be a list, of an entry with step or epoch, and settings: stages=[{step: 1000, head.m: 0.5}]"
    require(isinstance(given, list | tuple), "stages", given, shape)
    found = []
    for number, one in enumerate(given, 1):
        require(isinstance(one, Mapping), "stages", given, shape)
        settings = {str(key): value for key, value in one.items() if key not in (*Begin._fields, "without")}
        without = one.get("without", [])
        step, epoch = one.get("step"), one.get("epoch")
        begin = Begin(step, epoch)
        good = isinstance(step, int) and not isinstance(step, bool) and 0 < step < 10**12 and epoch is None
        if step is None:
            good = isinstance(epoch, int | float) and not isinstance(epoch, bool) and 0 < epoch < 1e9
        if not good:
            raise UserError(f"stage {number}: needs either step or epoch above 0, where it begins; has {one}")
        with naming(number, begin):
            settings = _dotted(settings)
            require(isinstance(without, list | tuple), "without", without, "must be a list of settings")
            for key, value in (settings | dict.fromkeys(map(str, without))).items():
                _refuse_fixed(key, value)
            settings |= dict.fromkeys(f"~{key}" for key in without)
            if not settings:
                raise UserError("changes no setting; leave it out")
        found.append(Entry(begin, settings))
    return found


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``head: {m: 0.5}`` as ``head.m: 0.5``."""
    dotted: dict[str, Any] = {}
    for key, value in settings.items():
        inner = key in SECTIONS and isinstance(value, Mapping)
        dotted |= {f"{key}.{name}": one for name, one in value.items()} if inner else {key: value}
    return dotted


def _refuse_fixed(key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    allowed = section in SECTIONS and key not in (*_STAYS, "optimizer")
    if section == "backbone":
        allowed = name.partition(".")[0] in _BACKBONE
    hint = (
        f"stays the same in a run; a stage may change head, data, schedule, settings of the optimizer, and "
        f"backbone.{', '.join(_BACKBONE)} (not {', '.join(_STAYS)})"
    )
    require(allowed, key, value, hint)


@dataclass(eq=False)
class Stage:
    """A part of a run with settings of its own; the first one has those of the run.

    Attributes:
        config: all settings while it lasts.
        start, schedule, optimizer, data: those that it may change, checked.
        begin: where it begins; None: with the run.
        given: what it changes, as it was given.
        loader: its images and their order.
    """

    config: Mapping[str, Any]
    start: StartSettings
    schedule: Schedule
    optimizer: OptimizerSettings
    data: DataSettings
    begin: Begin | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    loader: Loader = field(init=False)

    @property
    def reschedules(self) -> bool:
        """True where it changes the schedule, which then counts from its begin."""
        return any(key.lstrip("~").partition(".")[0] == "schedule" for key in self.given)

    def require_change(self, before: Stage, *, taught: bool) -> None:
        """Raise `UserError` where it changes nothing, what stays the same in a run, or what is `taught`."""
        if not self.changes(before):
            raise UserError("changes no setting; leave it out")
        root = self.data.root
        same = bool(root) and root == before.data.root and self.data.kind != "mix"  # which has its sources
        if "data" in self.given and "data.root" not in self.given and same:
            raise UserError(
                f"data={self.given['data']}: data.root={root} is that of before; give data.root, too"
            )
        teaching = [key for key in self.given if key.startswith(("head", "data", "backbone.frozen"))]
        if taught and teaching:
            raise UserError(f"{teaching[0]}: stays the same with a teacher, who was made for it")
        was, head = (one.config["head"] for one in (before, self))
        if ("sharded" in was) != ("sharded" in head):
            raise UserError(
                f"head={head['name']}: of {was['name']} and {head['name']} only one has class rows; train on "
                "in a run of its own, with backbone.pretrained=RUN/checkpoints/best.pt"
            )
        for key in _STAYS:
            section, name = key.split(".")
            old, new = (one.config[section].get(name) for one in (before, self))
            require(old == new, key, new, f"stays the same in a run, and was {setting_text(old)}")

    def changes(self, before: Stage) -> str:
        """Say what it changes: ``head.m=0.5 (was 0.3)``; a name explains the rest of its section."""
        old, new = (
            {k: v for k, v in flat(s.config).items() if k.partition(".")[0] in SECTIONS}
            for s in (before, self)
        )
        changed = {k: v for k, v in new.items() if k not in old or old[k] != v}
        renamed = {k.partition(".")[0] for k in changed if k.count(".") == 1 and k.endswith(".name")}
        shown = [
            f"{k}={_text(k, v)} (was {_text(k, old.get(k, 'not set'))})"
            for k, v in sorted(changed.items(), key=lambda item: not item[0].endswith(".name"))
            if k.partition(".")[0] not in renamed or k.endswith((".name", ".sources")) or k in self.given
        ]
        return ", ".join(shown)

    def open(self, before: Stage, embedding_size: int) -> None:
        """Open its images, unless they are those of the stage before, and check that its head can take them.

        Raises:
            UserError: a stage in the middle of an epoch changes images or order, or its batches do not fit.
        """
        whole = self.begin is not None and self.begin.epoch is not None and self.begin.epoch % 1 == 0
        other = [name for name, value in vars(self.data).items() if value != getattr(before.data, name)]
        hint = "changes images or their order, which only a stage can that begins between epochs, at epoch: N"
        for name in other:
            require(whole or name in _IN_EPOCH, f"data.{name}", getattr(self.data, name), hint)
        faces = before.loader.faces
        if set(other) - set(_LOADING):
            with distributed.rank_zero_first():
                faces = open_faces(self.data)
        self.loader = before.loader.changed(faces, self.data) if other else before.loader
        with on_meta_device():
            head = HEADS.from_section(
                self.config["head"], num_classes=faces.num_classes, embedding_size=embedding_size
            )
        check_batches(head, faces, self.data, self.loader.batch_size)


def _text(key: str, value: Any) -> str:
    """Write a setting; of the sources of a mixture, where each lies."""
    if key == "data.sources" and isinstance(value, list):
        value = [one.get("root") or one["kind"] for one in value]
    return setting_text(value)


def check_batches(head: Head, faces: LabelledImages, data: DataSettings, batch_size: int) -> None:
    """Raise `ConfigError` where no batch could hold what the head compares."""
    images_per_identity = {"full": None, "identity": data.images_per_identity}.get(data.shuffle, 1)
    head.check_batches(np.bincount(faces.label_N), batch_size, images_per_identity)


@dataclass(eq=False)
class Stages:
    """The stages of a run, and the change from one to the next.

    Attributes:
        all: that of the run's own settings, and the further ones.
        trainable: names of the backbone's parameters that its network lets be trained.
        seed: of the run.
    """

    all: Sequence[Stage]
    trainable: frozenset[str] = frozenset()
    seed: int = 0

    def steps(self, settings: TrainerSettings) -> list[int]:
        """Return the number of steps after which each stage begins, and at last that of the whole run.

        Raises:
            UserError: a stage that begins before the one before it, or after the end.
        """
        counts, epoch, base, loader = [0], 0.0, 0, self.all[0].loader
        for stage in self.all[1:]:
            assert stage.begin is not None
            at = stage.begin.step
            if stage.begin.epoch is not None:
                at = base + settings.steps_of(stage.begin.epoch - epoch, loader)
                if stage.begin.epoch % 1 == 0:  # from where the images may be others
                    epoch, base, loader = stage.begin.epoch, at, stage.loader
            counts.append(at or 0)
        total = base + settings.steps_of(max(0.0, settings.epochs - epoch), loader)
        total = total if settings.max_steps is None else min(total, settings.max_steps)
        for number, (stage, before, at) in enumerate(zip(self.all[1:], counts, counts[1:], strict=False), 1):
            with naming(number, stage.begin):
                if at <= before:
                    raise UserError(
                        f"begins after {at:,} steps, and must begin after stage {number - 1}, at {before:,}"
                    )
                if at >= total:
                    raise UserError(f"begins after {at:,} steps, and the run ends after {total:,}")
        return [*counts, total]

    def due(self, trainer: Trainer) -> bool:
        """Return True where the next step belongs to the next stage; not after the last batch of an epoch."""
        position = trainer.position
        if position.stage + 1 >= len(self.all) or not trainer.loader.batches_per_epoch(position.sample):
            return False
        begin = self.all[position.stage + 1].begin
        return begin is not None and begin.reached(trainer.progress())

    def enter(self, trainer: Trainer) -> None:
        """Begin the next stage: make what it changes anew, keep the rest, and say so in a line."""
        position, progress = trainer.position, trainer.progress()
        before, stage = self.all[position.stage : position.stage + 2]
        with trainer.meter.paused():
            rows = self._build(trainer, position.stage + 1)
            if rows == "start anew" and getattr(trainer.head, "init", None) == "class_means":
                start = StartSettings()
                with parallel.gathered(trainer.backbone):
                    fine_tuning.prepare_start(
                        start, trainer.backbone, trainer.head, trainer.loader, trainer.input, trainer.device
                    )
                trainer.set_modes()
            parallel.broadcast_buffers(trainer.backbone)  # which each rank has followed on its own
            trainer.warm_up()
        if stage.reschedules:
            position.origin = [progress.step, progress.epoch]
        position.stage += 1
        trainer.meter.flops = cost.of_run(trainer).flops_per_sample()
        said = f"; class rows {rows}" if rows else ""
        at = f"step {progress.step:,}, epoch {progress.epoch:.3g}"
        log.info("%-10s at %s: %s%s", f"stage {position.stage}", at, stage.changes(before), said)
        trainer.notify("staged")

    @contextlib.contextmanager
    def backbone_of(self, trainer: Trainer, stage: Stage) -> Iterator[None]:
        """Let the backbone be trained as in a stage, for what depends on that, and as before afterwards."""
        now = trainer.start
        try:
            self._train(trainer, stage.start)
            yield
        finally:
            self._train(trainer, now)

    def _train(self, trainer: Trainer, start: StartSettings) -> bool:
        """Let the backbone be trained as `start` says; return True where that is a change."""
        trainer.start = start
        changed = fine_tuning.set_trained(trainer.backbone, start, self.trainable)
        trainer.set_modes()
        return changed

    def began(self, number: int) -> Mapping[str, Any] | None:
        """Return the settings that the run began with, where those of a later stage replace them."""
        return self.all[0].config if number else None

    def go_to(self, trainer: Trainer, path: Path, stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Give a trainer the parts that the checkpoint of `stored` has been made of; returns `began`.

        Raises:
            CheckpointError: it is one of a stage that this run does not have.
        """
        number = stored.get("stage", 0)
        if not is_counter(number) or number >= len(self.all):
            raise CheckpointError(
                f"trainer.resume={path}: that run is in its stage {number}, and this one has "
                f"{len(self.all) - 1}; give it the same stages, or another output_dir"
            )
        if number != trainer.position.stage:
            self._build(trainer, number)
            trainer.position.stage = number
        return self.began(number)

    def require_ahead(self, trainer: Trainer, path: Path) -> None:
        """Raise `CheckpointError` where the start of the next stage has been passed without it."""
        number, progress = trainer.position.stage + 1, trainer.progress()
        begin = self.all[number].begin if number < len(self.all) else None
        before = progress._replace(step=progress.step - 1, epoch=progress.epoch - progress.stride)
        if begin is not None and begin.reached(before):
            raise CheckpointError(
                f"trainer.resume={path}: that run is at step {progress.step:,}, epoch "
                f"{progress.epoch:.3g}, and stage {number} was to begin at {begin}; let it begin later"
            )

    def _build(self, trainer: Trainer, number: int) -> str:
        """Give the trainer the parts of a stage; return what became of the class rows: kept, start anew."""
        before, stage = self.all[trainer.position.stage], self.all[number]
        trainer.schedule, trainer.loader, trainer.config = stage.schedule, stage.loader, stage.config
        held = state_by_name(trainer.optimizer)
        trained = self._train(trainer, stage.start)
        same = np.array_equal(np.asarray(before.loader.faces.classes), np.asarray(stage.loader.faces.classes))
        anew = "head.init" in stage.given or not same
        rows = ""
        if before.config["head"] != stage.config["head"] or anew:
            head = self._head(trainer, stage, number)
            kept = set() if anew else _carry(trainer.head, head)
            rows = "" if not hasattr(head, "weight") else "kept" if "weight" in kept else "start anew"
            held = {k: v for k, v in held.items() if k.partition(".")[0] != "head" or k[5:] in kept}
            trainer.head = head
        modules = {"backbone": trainer.backbone, "head": trainer.head}
        trainer.optimizer = make_optimizer(stage.optimizer, modules, stage.start.factors())
        names = [name for group in trainer.optimizer.param_groups for name in group["names"]]
        slots = {index: held[name] for index, name in enumerate(names) if name in held}
        trainer.optimizer.load_state_dict(state.optimizer_state(trainer.optimizer, slots))
        trainer.connect(wrap=trained)
        trainer.set_modes()
        return rows

    def _head(self, trainer: Trainer, stage: Stage, number: int) -> Head:
        """Make the head of a stage, alike on all ranks and whatever random numbers came before."""
        devices = [trainer.device] if trainer.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((self.seed + 1_000_033 * number) % 2**63)
            classes, size = stage.loader.faces.num_classes, trainer.backbone.embedding_size
            head: Head = HEADS.from_section(stage.config["head"], num_classes=classes, embedding_size=size)
        return head.to(trainer.device)


@torch.no_grad()
def _carry(old: Head, new: Head) -> set[str]:
    """Copy what two heads of the same identities share: of one loss all, else class rows and biases.

    Returns:
        The names of what was copied.
    """
    before, now = old.state_dict(), new.state_dict()
    names = {name for name in now if name in before and before[name].shape == now[name].shape}
    if type(old) is not type(new):
        names &= {"weight", "bias"}
    elif names != now.keys():  # of other class rows
        names = set()
    for name in names:
        now[name].copy_(before[name])
    return names
