"""The training loop, to be read top to bottom."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.device import autocast, release_memory
from facerec.errors import FacerecError, StorageError
from facerec.evaluation.protocols.verification import evaluate_targets
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.verify import VerificationResult
from facerec.heads import Head
from facerec.heads.mechanism.sampling import updating_sampled_rows
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import Batch, mirror_and_normalise, prepare
from facerec.loading.loader import Loader
from facerec.models import checkpoint
from facerec.models.model import Model
from facerec.training import comparison, fine_tuning, parallel, reporter, state
from facerec.training.ema import WeightAverage
from facerec.training.guard import Guard
from facerec.training.interruption import Interruption
from facerec.training.meter import Meter
from facerec.training.optimizers import set_learning_rate
from facerec.training.plateau import Plateau
from facerec.training.schedules import Progress, Schedule
from facerec.training.settings import StartSettings, TrainerSettings
from facerec.training.stages import Stages
from facerec.training.teacher import Teacher

log = logging.getLogger(__name__)

_CANNOT_WRITE = signal.SIGXFSZ  # tells the other ranks of a failed write, as if it were a signal
Results = dict[str, VerificationResult]


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains a backbone and a head, and evaluates, saves and reports as it goes."""

    settings: TrainerSettings
    schedule: Schedule
    start: StartSettings
    eval_settings: EvalSettings
    backbone: nn.Module
    head: Head
    optimizer: torch.optim.Optimizer
    loader: Loader
    verification_sets: Sequence[Any]
    input: Preprocessing
    device: torch.device
    config: Mapping[str, Any]
    folder: Path
    stages: Stages
    teacher: Teacher | None = None
    reporters: list[reporter.Reporter] = field(default_factory=list)
    changes: Mapping[str, str] = field(default_factory=dict)  # of settings, at this resume

    def __post_init__(self) -> None:
        settings = self.settings
        self.reporters = [Plateau(), *self.reporters]
        self.checkpoints = self.folder / "checkpoints"
        self.modules: dict[str, nn.Module] = {}
        self.parts: dict[str, Any] = {}  # all that checkpoints name
        self.connect()
        compiled = settings.compile and self.device.type == "cuda"
        self.fused = torch.compile(mirror_and_normalise) if compiled else None
        self.scaler = parallel.make_scaler(self.device, enabled=settings.precision == "fp16")
        self.meter = Meter(self.device)
        self.parts |= {"scaler": self.scaler, "random": state.RandomState(), "meter": self.meter}
        self.ema = None if settings.ema is None else WeightAverage(self.backbone, settings.ema)
        if self.ema is not None:
            self.parts["ema"] = self.ema
        self.guard = Guard(self.modules, self.device, self.checkpoints, self.scaler.is_enabled())
        keep, background = settings.keep_last, settings.save_in_background
        self.store = checkpoint.RunCheckpoints(self.checkpoints, keep=keep, background=background)
        self.position = state.Position()  # where the run stands
        self.saved: state.Position | None = None  # where the last checkpoint was written
        self.results: Results = {}  # of the last evaluation
        self.averaged: Results = {}  # of the averaged weights in it, where there are any
        self.interrupted: int | None = None  # number of the signal that ended the run early
        self.failure: StorageError | None = None  # the failed write that ends the run once it is saved

    def connect(self, *, wrap: bool = True) -> None:
        """Take in backbone, head and optimizer as they are; `wrap`: other parameters are trained."""
        if wrap:
            self.embed: nn.Module = self.backbone  # a former wrap must be gone before the next
            bf16 = self.settings.gradient_exchange == "bf16"
            ways: Any = {"compile": self.settings.compile, "bf16_gradients": bf16}
            self.embed = parallel.wrap_ddp(self.backbone, self.device, **ways)
        self.gradients = parallel.Gradients(self.backbone, self.head)
        self.modules |= {"backbone": self.backbone, "head": self.head}
        self.parts |= {**self.modules, "optimizer": self.optimizer}

    # -- the run ---------------------------------------------------------------------------------------------

    def fit(self) -> Results:
        """Train until the end, or until a signal; return the last evaluation.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; nothing was saved after the last good step.
            StorageError: a checkpoint or a record could not be written; the last checkpoint is still there.
        """
        self.set_modes()
        self.warm_up()
        with Interruption() as interruption:
            try:
                self.notify("started")
                self.check_signals(interruption, now=True)
                if self.eval_settings.at_start and not self.position.step:
                    self.evaluate()
                self.meter.reset()
                while not self.done() and not self.interrupted:
                    while self.stages.due(self):
                        self.stages.enter(self)
                    for batches in self.batches_of_steps():
                        self.step(batches)
                        self.after_step()
                        self.check_signals(interruption)
                        if self.done() or self.interrupted or self.stages.due(self):
                            break
                    else:  # the epoch is over
                        self.position.epoch, self.position.sample = self.position.epoch + 1, 0
                        if not self.eval_settings.every_steps and not self.done():
                            self.evaluate()
                            self.save()
                if not self.interrupted:
                    self.evaluate()
                if self.position.step:
                    self.save()
                self.store.finish()
            except StorageError as error:
                self.failure = self.failure or error
            finally:
                self.notify("finished")
        if self.failure is not None:
            raise self.failure
        return self.results

    def warm_up(self) -> None:
        """Fix the order in which gradients are averaged."""
        shape_BCHW = self.settings.batch_size, 3, *self.input.shape
        self.gradients.warm_up_ddp(self.embed, self.forward, shape_BCHW, self.device)

    def done(self) -> bool:
        """Return True when no step is left."""
        return self.progress().fraction >= 1

    def progress(self) -> Progress:
        """Return how far the run is."""
        images = len(self.loader.faces)
        return self.progress_at(self.position.step, self.position.epoch + self.position.sample / images)

    def progress_at(self, step: int, epoch: float) -> Progress:
        """Return how far a run is after so many steps and epochs."""
        images_per_step = self.loader.batch_size * self.loader.world_size * self.settings.accumulate
        fraction = epoch / self.settings.epochs
        if self.settings.max_steps is not None:
            fraction = max(fraction, step / self.settings.max_steps)
        return Progress(step, epoch, fraction, min(1.0, images_per_step / len(self.loader.faces)))

    def steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self.stages.steps(self.settings)[-1]

    def batches_of_steps(self) -> Iterator[list[Batch]]:
        """Yield the list of batches of each step that is left of the epoch."""
        batches = self.loader.batches(self.position.epoch, self.position.sample)
        with contextlib.closing(batches):  # type: ignore[type-var]
            while True:
                try:
                    with self.meter.waiting():
                        batches_of_step = list(itertools.islice(batches, self.settings.accumulate))
                except (FacerecError, OSError):  # the data is lost, what was learnt from it need not be
                    if self.loader.world_size == 1 and self.position.step:
                        with contextlib.suppress(StorageError):
                            self.save()
                    raise
                if not batches_of_step:
                    return
                yield batches_of_step

    # -- one step --------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Batch]) -> None:
        """Apply one optimizer step over `batches`, weighted by their sizes."""
        step, epoch = self.position.origin
        progress = self.progress().since(self.progress_at(int(step), epoch))
        self.lr = set_learning_rate(self.optimizer, self.schedule.factor(progress))
        self.optimizer.zero_grad(set_to_none=True)
        samples = sum(sum(batch.sizes) for batch in batches)
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            # Gradients are averaged over the ranks, whose batches may differ by an image.
            weight = len(batch.label_B) * self.loader.world_size / samples
            image_BCHW, label_B = prepare(batch, self.device, self.input, self.fused)
            with parallel.no_sync(self.embed, unless=batch is batches[-1]):
                embedding_BD = self.forward(image_BCHW)
                output = self.head(embedding_BD, label_B, batch.sizes)
                if self.teacher is not None:
                    output = self.teacher.add(output, embedding_BD, image_BCHW, batch)
                self.scaler.scale(output.loss * weight).backward()
            loss += output.loss.detach() * weight
            self.meter.add(output.statistics, weight=len(label_B))
        loss, norm = self.update_weights(loss, len(batches))
        self.head.after_step()
        if self.ema is not None:
            self.position.averaged += 1
            self.ema.update(self.position.averaged)

        self.position.step += 1
        self.position.sample = batches[-1].position
        self.meter.add({"loss": loss, "grad_norm": norm}, weight=1)
        self.meter.samples += samples

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Embed images in the run's precision; without gradient where the backbone is frozen."""
        if isinstance(self.settings.compile, str) and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # a CUDA graph writes where it wrote the batch before
        with autocast(self.device, self.settings.precision), torch.set_grad_enabled(not self.start.frozen):
            embedding_BD: Tensor = self.embed(image_BCHW)
        return embedding_BD

    def update_weights(self, loss: Tensor, batches: int) -> tuple[Tensor, Tensor]:
        """Reduce, check, clip and apply the gradients; return loss and gradient norm over all ranks."""
        self.scaler.unscale_(self.optimizer)
        self.gradients.reduce(batches)
        norm, loss = self.gradients.norm(loss)
        self.guard.watch(self.position.step + 1, loss, norm)  # before clipping makes all of them NaN
        if self.settings.clip_norm:
            self.gradients.clip(norm, self.settings.clip_norm, self.settings.clip_part)
        with updating_sampled_rows(self.optimizer):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, norm

    # -- between steps ---------------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Log, evaluate and save at the intervals of the settings."""
        self.notify("stepped")
        if self.at_every(self.settings.check_replicas):
            parallel.check_replicas(self.position.step, self.backbone, self.head, self.optimizer)
        if self.at_every(self.settings.log_every) or self.done():
            self.guard.check()
            self.guard.check_scale(self.scaler, self.position.step)
            progress = self.progress()
            row = {"step": progress.step, "epoch": progress.epoch, "lr": self.lr} | self.meter.row()
            row |= {"stage": self.position.stage} if len(self.stages.all) > 1 else {}
            self.notify("logged", row)
        if self.at_every(self.eval_settings.every_steps):
            self.evaluate()
            self.save()
        elif self.at_every(self.settings.save_every):
            epoch_over = not self.loader.batches_per_epoch(self.position.sample)
            if not self.done() and (self.eval_settings.every_steps or not epoch_over):
                self.save()  # else an evaluation follows, and a save after it

    def at_every(self, every: int | None) -> bool:
        """Return True every `every` steps; never for 0 or None."""
        return bool(every) and self.position.step % every == 0  # type: ignore[operator]

    def check_signals(self, interruption: Interruption, now: bool = False) -> None:
        """End the run after a signal or a failed write; several ranks agree on it when they log anyway."""
        if self.loader.world_size == 1 or now or self.at_every(self.settings.log_every):
            own = interruption.signal or (_CANNOT_WRITE if self.failure else None)
            self.interrupted = parallel.agree_on_signal(own)
            if self.interrupted == _CANNOT_WRITE and self.failure is None:
                self.failure = StorageError("another process could not write; this one has stopped with it")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Check the weights, then stop the clock while they are evaluated or saved; all ranks call this."""
        self.guard.check()
        self.guard.check_weights(self.position.step)
        with self.meter.paused():
            parallel.broadcast_buffers(self.backbone)
            if self.ema is not None:
                with self.ema.in_place():
                    parallel.broadcast_buffers(self.backbone)
            yield

    def evaluate(self) -> None:
        """Evaluate the backbone, once per step, and write best.pt where it is the best so far."""
        if not self.verification_sets or (self.results and self.position.evaluated == self.position.step):
            return
        with self.paused():
            at = self.position
            judge = partial(
                evaluate_targets, self.model(), self.verification_sets, self.eval_settings, step=at.step
            )
            with parallel.gathered(self.backbone):
                self.results = judge(highest=at.highest)
            if self.ema is not None:
                with self.ema.in_place(), parallel.gathered(self.backbone):
                    self.averaged = judge(prefix="ema/")
            at.evaluated = at.step
            self.notify("evaluated", self.results)
            if at.improved(self.results, self.eval_settings.select):
                unsharded = {"backbone": self.backbone} if self.head.sharded_parameters else self.modules
                averages = {} if self.ema is None else {"ema": self.ema}
                best = state.capture(self, {**unsharded, **averages}, whole=True)
                if distributed.rank() == 0:
                    checkpoint.save(self.checkpoints / "best.pt", best)
                del best
            release_memory()

    def save(self) -> None:
        """Write the checkpoint from which the run can go on exactly, unless it is there already."""
        if self.saved == self.position:
            return
        self.notify("saving")
        with self.paused():
            self.store.save(state.capture(self, self.parts), state.shards_of(self.parts))
            self.saved = copy.deepcopy(self.position)

    def resume(self, path: Path) -> None:
        """Go on from `path`, or the checkpoint before it where it is damaged."""
        path, (self.position, self.changes) = self.store.read(path, partial(state.restore, self))
        self.stages.require_ahead(self, path)
        self.saved = copy.deepcopy(self.position)
        log.info("resumed from %s: step %d, epoch %.3f", path, self.position.step, self.progress().epoch)
        comparison.log_changes(path, self.changes, self.position.step if self.done() else None)

    def set_modes(self) -> None:
        """Put head and backbone into training mode, as far as the backbone is trained."""
        self.head.train()
        fine_tuning.set_mode(self.backbone, self.start)

    def model(self) -> Model:
        """Return the backbone with its preprocessing."""
        return Model(self.backbone, self.input, step=self.position.step, epoch=self.position.epoch)

    def notify(self, event: str, *details: Any) -> None:
        """Pass an event on to all reporters; the first that cannot write ends the run."""
        self.failure = reporter.notify(self.reporters, self, event, *details) or self.failure
