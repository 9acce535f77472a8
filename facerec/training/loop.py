"""The training loop, to be read top to bottom."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facerec import checkpoint, processes
from facerec.data.loader import Batch, Loader
from facerec.data.prepare import prepare
from facerec.device import autocast
from facerec.evaluation.model import Input, Model
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.targets import evaluate_targets
from facerec.evaluation.verification import VerificationResult
from facerec.heads import Head
from facerec.training import comparison, parallel, schedule, state
from facerec.training.guard import Guard, Plateau
from facerec.training.half_weights import half_weights
from facerec.training.interruption import Interruption
from facerec.training.last import LastCheckpoint
from facerec.training.meter import Meter, Yardstick
from facerec.training.optimizer import set_learning_rate
from facerec.training.reporter import Reporter
from facerec.training.sampled_rows import sampled_rows
from facerec.training.settings import ScheduleSettings, StartSettings, TrainerSettings
from facerec.training.state import Position

log = logging.getLogger(__name__)

Results = dict[str, VerificationResult]


class Trainer:
    """Trains a backbone and a head on batches of faces, and evaluates, saves and reports as it goes.

    Attributes:
        position: where the run stands.
        results: the last evaluation.
        interrupted: number of the signal that ended the run early, or None.
    """

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        schedule_settings: ScheduleSettings,
        start: StartSettings,
        eval_settings: EvalSettings,
        backbone: nn.Module,
        head: Head,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        verification_sets: Sequence[Any],
        input: Input,
        device: torch.device,
        config: Mapping[str, Any],
        folder: Path,
        reporters: Sequence[Reporter] = (),
    ) -> None:
        self.settings = settings
        self.schedule = schedule_settings
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
        self.reporters = reporters

        self.scaler = parallel.make_scaler(device, enabled=settings.precision == "fp16")
        self.embed = parallel.spread(backbone, device, compile=settings.compile)
        self.gradients = parallel.Gradients(backbone, head)
        self.last = LastCheckpoint(self.checkpoints, background=settings.save_in_background)
        self.position = Position()
        self.results: Results = {}
        self.interrupted: int | None = None
        self.modules: dict[str, nn.Module] = {"backbone": backbone, "head": head}
        own = {"optimizer": optimizer, "scaler": self.scaler, "random": state.RandomState()}
        self.parts: dict[str, Any] = {**self.modules, **own}  # what has a state, as checkpoints name it
        self.guard = Guard(self.modules, device, self.checkpoints, self.scaler.is_enabled())
        self.meter = Meter(Yardstick(device))
        self.lr = 0.0
        self.evaluated_at = self.saved_at = -1

    # -- the run ---------------------------------------------------------------------------------------------

    def fit(self) -> Results:
        """Train until the end, or until a signal; returns the last evaluation.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; nothing was saved after the last good step.
            StorageError: a checkpoint could not be written; the one before is still there.
        """
        self.set_modes()
        with Interruption() as interruption:
            self.tell("started")
            try:
                self.meter = Meter(self.meter.yardstick)  # from now on
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
                self.save()
                self.last.finish()
            finally:
                self.tell("finished")
        return self.results

    def done(self) -> bool:
        """Whether the run has come to its end."""
        return self.progress().whole >= 1

    def progress(self) -> schedule.Progress:
        """How far the run is, in steps, in epochs and as a whole."""
        count = len(self.loader.faces)
        taken = self.loader.batch_size * self.loader.world_size * self.settings.accumulate
        epoch = self.position.epoch + self.position.sample / count
        whole = epoch / self.settings.epochs
        if self.settings.max_steps is not None:
            whole = max(whole, self.position.step / self.settings.max_steps)
        return schedule.Progress(self.position.step, epoch, whole, min(1.0, taken / count))

    def groups(self) -> Iterator[tuple[list[Batch], float]]:
        """The rest of the present epoch: the batches of a step at a time, and the seconds waited for them."""
        batches = self.loader.batches(self.position.epoch, self.position.sample)
        with contextlib.closing(batches):  # type: ignore[type-var]
            while True:
                asked = time.perf_counter()
                group = list(itertools.islice(batches, self.settings.accumulate))
                if not group:
                    return
                yield group, time.perf_counter() - asked

    # -- one step --------------------------------------------------------------------------------------------

    def step(self, group: Sequence[Batch], data_wait: float) -> None:
        """One step of the optimizer over the batches of `group`, weighed by their sizes."""
        self.lr = self.optimizer.defaults["lr"] * schedule.factor(self.schedule, self.progress())
        set_learning_rate(self.optimizer, self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        samples = sum(sum(batch.sizes) for batch in group)
        loss = torch.zeros((), device=self.device)
        for batch in group:
            # What follows averages over the processes, whose batches may differ by a picture.
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
        """Embeddings of pictures, in the run's precision; without gradient where the backbone is frozen."""
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
        rounding = self.config["seed"] + self.position.step
        with half_weights(self.optimizer, rounding), sampled_rows(self.optimizer):
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
        elif self.at(self.settings.save_every):
            self.save()

    def at(self, every: int | None) -> bool:
        """Whether the step just made is one of every so many; never, where that is 0 or null."""
        return bool(every) and self.position.step % every == 0  # type: ignore[operator]

    def listen(self, interruption: Interruption) -> None:
        """Take in a signal; where there are several processes they agree to stop, when they log anyway."""
        if self.loader.world_size == 1 or self.at(self.settings.log_every):
            self.interrupted = parallel.agreed(interruption.signal)

    def evaluate(self) -> None:
        """Evaluate the backbone as it is now, once a step, and keep it where it is the best so far."""
        if self.evaluated_at == self.position.step or not self.verification_sets:
            return
        self.guard.check()
        self.meter.pause()
        parallel.share_buffers(self.backbone)
        self.results = evaluate_targets(
            self.model(),
            self.verification_sets,
            self.eval_settings,
            step=self.position.step,
            highest=self.position.highest,
        )
        self.evaluated_at = self.position.step
        self.tell("evaluated", self.results)
        mean = sum(result.accuracy for result in self.results.values()) / len(self.results)
        if mean > self.position.best:
            self.position.best = mean
            if processes.rank() == 0:
                whole = {"backbone": self.backbone} if self.head.shared_out else self.modules
                checkpoint.save(self.checkpoints / "best.pt", self.captured(whole))
        self.meter.go_on()

    def save(self) -> None:
        """Write the checkpoint from which the run can go on exactly, once a step."""
        if self.saved_at == self.position.step:
            return
        self.guard.check()
        self.meter.pause()
        parallel.share_buffers(self.backbone)
        self.last.save(self.captured(self.parts), state.held_rows(self.parts))
        self.saved_at = self.position.step
        self.meter.go_on()

    def resume(self, path: Path) -> None:
        """Take up the run that wrote `path`; raises `CheckpointError` where it is not this one."""
        self.position, changes = state.restore(path, self.parts, self.config, self.loader.faces)
        self.saved_at = self.position.step
        log.info("resumed from %s: step %d, epoch %.3f", path, self.position.step, self.progress().epoch)
        comparison.say(path, changes, self.position.step if self.done() else None)

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
        """Pass an event on to all reporters."""
        for reporter in self.reporters:
            getattr(reporter, event)(self, *details)
