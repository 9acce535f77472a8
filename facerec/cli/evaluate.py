"""`facerec-eval`: compose the configuration and evaluate a checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from facerec.cli.base import run_hydra_command

if TYPE_CHECKING:
    from facerec.reporting.run_folder import RunFolder

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the console script."""
    run_hydra_command("facerec-eval", "eval", evaluate)


def evaluate(config: dict[str, Any], run: RunFolder) -> float:
    """Evaluate in the run's folder and return the mean accuracy."""
    from facerec import distributed, process
    from facerec.device import resolve_device
    from facerec.reporting.evaluation import evaluate_checkpoint

    run.hold()
    allocator = process.keep_memory()
    with distributed.process_group(resolve_device(str(config.get("device", "auto")), key="device")):
        folder = distributed.broadcast_object(run.path)

        def accept() -> None:
            if allocator:
                log.info("%-10s %s", "allocator", allocator)
            run.accept(folder)

        return evaluate_checkpoint(config, folder, accept)
