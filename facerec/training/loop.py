"""The training loop, to be read top to bottom."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
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
from facerec.images.preprocessing import Preprocessing
from facerec.loading.loader import Batch, Loader
from facerec.loading.prepare import prepare
from facerec.models import checkpoint
from facerec.models.checkpoint import RunCheckpoints
from facerec.models.model import Model
from facerec.training import comparison, parallel, reporter, resume, state
from facerec.training.guard import Guard, Plateau
from facerec.training.interruption import Interruption
from facerec.training.meter import Meter, Yardstick
from facerec.training.optimizers import set_learning_rate
from facerec.training.reporter import Reporter
from facerec.training.sampled_rows import sampled_rows
from facerec.training.schedules import Progress, Schedule
from facerec.training.settings import StartSettings, TrainerSettings
from facerec.training.state import Position

log = logging.getLogger(__name__)

_CANNOT_WRITE = signal.SIGXFSZ  # as a signal that a process has got, for the others
Results = dict[str, VerificationResult]


class Trainer:
    """Trains a backbone and a head on batches of faces, and evaluates, saves and reports as it goes.

    Attributes:
        position: where the run stands.
        results: the last evaluation.
        interrupted: number of the signal that ended the run early, or None.
        failure: what could not be written, which ends the run after it has been saved.
    """

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        schedule: Schedule,
        start: StartSettings,
        eval_settings: EvalSettings,
        backbone: nn.Module,
        head: Head,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        verification_sets: Sequence[Any],
        input: Preprocessing,
        device: torch.device,
        config: Mapping[str, Any],
        folder: Path,
        reporters: Sequence[Reporter] = (),
    ) -> None:
        self.settings = settings
        self.schedule = schedule
        self.start = start
        self.eval_settings = eval_settings
        self.backbone = backbone
        self.head = head
        self.optimizer = optimizer
        self.loader = loader
        self.verification_sets = verification_sets
        self.input = input
        self.device = device
        self.config = config
        self.checkpoints = folder / "checkpoints"
        self.reporters = list(reporters)

        self.scaler = parallel.make_scaler(device, enabled=settings.precision == "fp16")
        self.embed = parallel.spread(backbone, device, compile=settings.compile)
        self.gradients = parallel.Gradients(backbone, head)
        self.store = RunCheckpoints(
            self.checkpoints, keep=settings.keep_last, background=settings.save_in_background
        )
        self.position = Position()
        self.results: Results = {}
        self.interrupted: int | None = None
        self.failure: StorageError | None = None
        self.modules: dict[str, nn.Module] = {"backbone": backbone, "head": head}
        self.meter = Meter(Yardstick(device))
        own = {
            "optimizer": optimizer,
            "scaler": self.scaler,
            "random": state.RandomState(),
            "meter": self.meter,
        }
        self.parts: dict[str, Any] = {**self.modules, **own}  # what has a state, as checkpoints name it
        self.guard = Guard(self.modules, device, self.checkpoints, self.scaler.is_enabled())
        self.lr = 0.0
        self.evaluated_at = -1
        self.saved: Position | None = None

    # -- the run ---------------------------------------------------------------------------------------------

    def fit(self) -> Results:
        """Train until the end, or until a signal; returns the last evaluation.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; nothing was saved after the last good step.
            StorageError: a checkpoint could not be written, and the one before is still there; or a record of
                the run could not, and the run has been saved where that was possible.
        """
        self.set_modes()
        blank_BHWC = torch.zeros(self.settings.batch_size, *self.input.shape, 3, device=self.device)
        self.gradients.lay_out(self.embed, self.forward, blank_BHWC.permute(0, 3, 1, 2))
        with Interruption() as interruption:
            try:
                self.tell("started")
                self.listen(interruption, now=True)
                self.meter.restart_clock()
                self.plateau = Plateau(self.head, self.position.step)
                while not self.done() and not self.interrupted:
                    for group, data_wait in self.groups():
                        self.step(group, data_wait)
                        self.after_step()
                        self.listen(interruption)
                        if self.done() or self.interrupted:
                            break
                    else:  # the epoch ran out
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
                self.tell("finished")
        if self.failure is not None:
            raise self.failure
        return self.results

    def done(self) -> bool:
        """Whether the run has come to its end."""
        return self.progress().whole >= 1

    def progress(self) -> Progress:
        """How far the run is, in steps, in epochs and as a whole."""
        count = len(self.loader.faces)
        taken = self.loader.batch_size * self.loader.world_size * self.settings.accumulate
        epoch = self.position.epoch + self.position.sample / count
        whole = epoch / self.settings.epochs
        if self.settings.max_steps is not None:
            whole = max(whole, self.position.step / self.settings.max_steps)
        return Progress(self.position.step, epoch, whole, min(1.0, taken / count))

    def groups(self) -> Iterator[tuple[list[Batch], float]]:
        """The rest of the present epoch: the batches of a step at a time, and the seconds waited for them."""
        batches = self.loader.batches(self.position.epoch, self.position.sample)
        with contextlib.closing(batches):  # type: ignore[type-var]
            while True:
                asked = time.perf_counter()
                try:
                    group = list(itertools.islice(batches, self.settings.accumulate))
                except (FacerecError, OSError):  # what was learnt until now need not be lost with the data
                    if self.loader.world_size == 1 and self.position.step:
                        with contextlib.suppress(StorageError):
                            self.save()
                    raise
                if not group:
                    return
                yield group, time.perf_counter() - asked

    # -- one step --------------------------------------------------------------------------------------------

    def step(self, group: Sequence[Batch], data_wait: float) -> None:
        """One step of the optimizer over the batches of `group`, weighed by their sizes."""
        self.lr = self.optimizer.defaults["lr"] * self.schedule.factor(self.progress())
        set_learning_rate(self.optimizer, self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        samples = sum(sum(batch.sizes) for batch in group)
        loss = torch.zeros((), device=self.device)
        for batch in group:
            # What follows averages over the processes, whose batches may differ by an image.
            share = len(batch.label_B) * self.loader.world_size / samples
            image_BCHW, label_B = prepare(batch, self.device, self.input)
            with parallel.without_exchange(self.embed, last=batch is group[-1]):
                output = self.head(self.forward(image_BCHW), label_B, batch.sizes)
                self.scaler.scale(output.loss * share).backward()
            loss += output.loss.detach() * share
            self.meter.add(output.statistics, weight=len(label_B))
        loss, norm = self.update(loss, len(group))
        self.head.after_step()

        self.position.step += 1
        self.position.sample = group[-1].position
        self.meter.add({"loss": loss, "grad_norm": norm}, weight=1)
        self.meter.count(samples, data_wait)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Embeddings of images, in the run's precision; without gradient where the backbone is frozen."""
        with autocast(self.device, self.settings.precision), torch.set_grad_enabled(not self.start.frozen):
            embedding_BD: Tensor = self.embed(image_BCHW)
        return embedding_BD

    def update(self, loss: Tensor, batches: int) -> tuple[Tensor, Tensor]:
        """Let the optimizer change the weights; returns loss and gradient norm of all processes together."""
        self.scaler.unscale_(self.optimizer)
        self.gradients.settle(batches)
        norm, loss = self.gradients.norm(loss)
        self.guard.watch(self.position.step + 1, loss, norm)  # before a clip spreads a NaN over all
        if self.settings.clip_norm:
            self.gradients.clip(norm, self.settings.clip_norm)
        with sampled_rows(self.optimizer):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, norm

    # -- between steps ---------------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Log, evaluate and save where it is time to."""
        self.tell("stepped")
        if self.at(self.settings.check_replicas):
            parallel.check_replicas(self.position.step, self.backbone, self.head, self.optimizer)
        if self.at(self.settings.log_every) or self.done():
            self.guard.check()
            self.guard.check_scale(self.scaler, self.position.step)
            progress = self.progress()
            row = self.meter.row()
            self.plateau.look(progress.step, progress.whole, self.lr, row)
            self.tell("logged", {"step": progress.step, "epoch": progress.epoch, "lr": self.lr} | row)
        if self.at(self.eval_settings.every_steps):
            self.evaluate()
            self.save()
        elif self.at(self.settings.save_every) and not self.evaluation_follows():
            self.save()

    def at(self, every: int | None) -> bool:
        """Whether the step just made is one of every so many; never, where that is 0 or null."""
        return bool(every) and self.position.step % every == 0  # type: ignore[operator]

    def evaluation_follows(self) -> bool:
        """Whether the step just made ends the run, or an epoch that is evaluated and saved as a whole."""
        epoch_over = not self.loader.batches_per_epoch(self.position.sample)
        return self.done() or (epoch_over and not self.eval_settings.every_steps)

    def listen(self, interruption: Interruption, now: bool = False) -> None:
        """Take in a signal or a failure; several processes agree to stop, when they log anyway."""
        if self.loader.world_size == 1 or now or self.at(self.settings.log_every):
            self.interrupted = parallel.agreed(
                interruption.signal or (_CANNOT_WRITE if self.failure else None)
            )
            if self.interrupted == _CANNOT_WRITE and self.failure is None:
                self.failure = StorageError("another process could not write; this one has stopped with it")

    def evaluate(self) -> None:
        """Evaluate the backbone as it is now, once a step, and keep it where it is the best so far."""
        if self.evaluated_at == self.position.step or not self.verification_sets:
            return
        self.guard.check()
        self.guard.check_weights(self.position.step)
        self.meter.pause()
        parallel.share_buffers(self.backbone)
        self.results = evaluate_targets(
            self.model(),
            self.verification_sets,
            self.eval_settings,
            step=self.position.step,
            highest=self.position.highest,
        )
        self.evaluated_at = self.position.evaluated = self.position.step
        self.tell("evaluated", self.results)
        mean = sum(result.accuracy for result in self.results.values()) / len(self.results)
        if mean > self.position.best:
            self.position.best = mean
            if distributed.rank() == 0:
                whole = {"backbone": self.backbone} if self.head.sharded_parameters else self.modules
                checkpoint.save(self.checkpoints / "best.pt", self.captured(whole))
        release_memory()
        self.meter.go_on()

    def save(self) -> None:
        """Write the checkpoint from which the run can go on exactly, unless that is there already."""
        if self.saved == self.position:
            return
        self.guard.check()
        self.guard.check_weights(self.position.step)
        self.tell("saving")
        self.meter.pause()
        parallel.share_buffers(self.backbone)
        self.store.save(self.captured(self.parts), state.shards_of(self.parts))
        self.saved = copy.deepcopy(self.position)
        self.meter.go_on()

    def resume(self, path: Path) -> None:
        """Take up the run that wrote `path`, or the checkpoint before it where that is damaged; raises
        `CheckpointError` where it is not this run.
        """
        read = partial(resume.restore, parts=self.parts, config=self.config, faces=self.loader.faces)
        path, (self.position, changes) = self.store.read(path, read)
        self.saved = copy.deepcopy(self.position)
        log.info("resumed from %s: step %d, epoch %.3f", path, self.position.step, self.progress().epoch)
        comparison.log_changes(path, changes, self.position.step if self.done() else None)

    # -- small things ----------------------------------------------------------------------------------------

    def set_modes(self) -> None:
        """Training mode, as far as the backbone is to be trained."""
        self.head.train()
        state.freeze(self.backbone, frozen=self.start.frozen, batch_norm=self.start.freeze_batch_norm)

    def model(self) -> Model:
        """The backbone as it is now, with its preprocessing."""
        return Model(self.backbone, self.input, step=self.position.step, epoch=self.position.epoch)

    def captured(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of a checkpoint."""
        return state.capture(
            self.position,
            parts,
            config=self.config,
            input=self.input.to_dict(),
            faces=self.loader.faces,
        )

    def tell(self, event: str, *details: Any) -> None:
        """Pass an event on to all reporters; the first that cannot write ends the run."""
        self.failure = reporter.tell(self.reporters, self, event, *details) or self.failure
