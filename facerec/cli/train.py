"""`facerec-train`: compose the configuration and train."""

from __future__ import annotations

import logging
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from facerec.cli.base import StoppedBySignal, run_hydra_command

if TYPE_CHECKING:
    from facerec.reporting.run_folder import RunFolder
    from facerec.training.loop import Trainer

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the console script."""
    run_hydra_command("facerec-train", "train", train)


def train(config: dict[str, Any], run: RunFolder) -> float | None:
    """Train in the run's folder and return the mean accuracy, if there was an evaluation."""
    from facerec import distributed, process
    from facerec.reporting.loggers import make_loggers
    from facerec.training.run import assemble, device_of

    run.hold()
    allocator = process.keep_memory()
    with distributed.process_group(device_of(config)):
        folder = distributed.broadcast_object(run.path)
        rank_zero = distributed.rank() == 0
        loggers = make_loggers(config, folder)
        trainer = assemble(config | {"output_dir": str(folder)}, folder, loggers if rank_zero else ())
        if allocator:
            log.info("%-10s %s", "allocator", allocator)
        run.accept(folder)
        results = trainer.fit()
    if rank_zero:
        log_outcome(trainer, folder)
    if trainer.interrupted is not None:
        raise StoppedBySignal(trainer.interrupted)
    return sum(result.accuracy for result in results.values()) / len(results) if results else None


def log_outcome(trainer: Trainer, folder: Path) -> None:
    """Log accuracies, or the signal that ended the run before they were measured, and the folder."""
    if trainer.interrupted is not None:
        log.info("%s: saved at step %d", Signals(trainer.interrupted).name, trainer.position.step)
    else:
        for name, result in trainer.results.items():
            accuracy = f"{result.accuracy:.5f} ± {result.accuracy_std:.5f}"
            log.info("%s: accuracy %s on %s pairs", name, accuracy, f"{result.pairs:,}")
    log.info("run folder: %s", folder)
