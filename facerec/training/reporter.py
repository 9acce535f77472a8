"""The interface between the loop and progress bars, metric files and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from facerec.errors import StorageError
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.verify import VerificationResult
from facerec.files import storing
from facerec.heads import Head
from facerec.images.preprocessing import Preprocessing
from facerec.loading.loader import Loader
from facerec.models.model import Model
from facerec.training.schedules import Progress
from facerec.training.settings import TrainerSettings
from facerec.training.state import Position


class Run(Protocol):
    """The part of a `facerec.training.loop.Trainer` that reporters may look at."""

    settings: TrainerSettings
    position: Position
    loader: Loader
    eval_settings: EvalSettings
    checkpoints: Path
    device: torch.device
    embed: nn.Module
    head: Head
    optimizer: torch.optim.Optimizer
    config: Mapping[str, Any]
    input: Preprocessing
    interrupted: int | None
    failure: StorageError | None
    averaged: dict[str, VerificationResult]
    """Of the averaged weights in the last evaluation (`trainer.ema`); else empty."""
    changes: Mapping[str, str]
    """Settings that have changed at this resume, ``0.01 (was 0.1)``."""

    def progress(self) -> Progress:
        """Return how far the run is."""
        ...

    def steps(self) -> int:
        """Return the number of steps of the whole run."""
        ...

    def model(self) -> Model:
        """Return the backbone with its preprocessing."""
        ...


class Reporter:
    """Follows a run. Each event does nothing by default; a subclass takes those that it wants."""

    path = Path("standard output")  # what it writes, for the message where that fails

    def started(self, run: Run) -> None:
        """Before the first step."""

    def stepped(self, run: Run) -> None:
        """After every step; must not wait for the device."""

    def staged(self, run: Run) -> None:
        """After a stage has begun, with other settings and parts."""

    def logged(self, run: Run, row: Mapping[str, Any]) -> None:
        """At each row of metrics, as metrics.jsonl has it."""

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        """After an evaluation."""

    def saving(self, run: Run) -> None:
        """Before a checkpoint is written: what is held back must be written now, or a kill loses it."""

    def finished(self, run: Run) -> None:
        """After the last step, also where the run failed or was interrupted."""


def notify(reporters: list[Reporter], run: Run, event: str, *details: Any) -> StorageError | None:
    """Pass an event on to all reporters that could start; return the first failed write."""
    first = None
    for reporter in list(reporters):
        try:
            with storing(reporter.path):
                getattr(reporter, event)(run, *details)
        except StorageError as error:
            if event == "started":
                reporters.remove(reporter)
            first = first or StorageError(f"{error}; the run stops at step {run.position.step}")
        except BaseException:
            if event == "started":  # those that have not started cannot finish
                del reporters[reporters.index(reporter) :]
            raise
    return first
