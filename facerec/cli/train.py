"""`facerec-train`: compose the configuration and train."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from facerec.cli.errors import reported, stopped_by_sigterm

if TYPE_CHECKING:
    from facerec.reporting.run_folder import RunFolder
    from facerec.training.loop import Results, Trainer

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(stopped_by_sigterm(lambda: reported("facerec-train", _run)))


def _run() -> int:
    from facerec.cli.compose import compose_and_run

    ended_by: list[int] = []

    def train(config: dict[str, Any], run: RunFolder) -> float | None:
        from facerec import distributed
        from facerec.reporting.loggers import make_loggers
        from facerec.training.run import assemble, device_of

        run.hold()
        with distributed.process_group(device_of(config)):
            folder = distributed.broadcast_object(run.path)
            first = distributed.rank() == 0
            loggers = make_loggers(config, folder)
            trainer = assemble(config | {"output_dir": str(folder)}, folder, loggers if first else ())
            run.accept(folder)
            results = trainer.fit()
        if first:
            tell(trainer, results, folder)
        if trainer.interrupted is not None:
            ended_by.append(trainer.interrupted)
            raise KeyboardInterrupt  # a sweep must not go on with its next run
        return sum(r.accuracy for r in results.values()) / len(results) if results else None

    def tell(trainer: Trainer, results: Results, folder: Path) -> None:
        # An interrupted run was not evaluated where it stands; its last evaluation is of an earlier step.
        for name, result in results.items() if trainer.interrupted is None else ():
            accuracy = f"{result.accuracy:.5f} ± {result.accuracy_std:.5f}"
            log.info("%s: accuracy %s on %s pairs", name, accuracy, f"{result.pairs:,}")
        if trainer.interrupted is not None:
            log.info("%s: saved at step %d", Signals(trainer.interrupted).name, trainer.position.step)
        log.info("run folder: %s", folder)

    try:
        compose_and_run("train", train)
    except KeyboardInterrupt:
        if not ended_by:
            raise
        return 128 + ended_by[0]
    return 0
