"""`facerec-eval`: compose the configuration and evaluate a checkpoint."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from facerec.cli.errors import reported, stopped_by_sigterm

if TYPE_CHECKING:
    from facerec.reporting.run_folder import RunFolder


def main() -> None:
    """Entry point of the console script."""
    sys.exit(stopped_by_sigterm(lambda: reported("facerec-eval", _run)))


def _run() -> int:
    from facerec.cli.compose import compose_and_run

    def evaluate(config: dict[str, Any], run: RunFolder) -> float:
        from facerec import distributed
        from facerec.device import resolve_device
        from facerec.reporting.evaluation import evaluate_checkpoint

        run.hold()
        with distributed.process_group(resolve_device(str(config.get("device", "auto")), key="device")):
            folder = distributed.broadcast_object(run.path)
            return evaluate_checkpoint(config, folder, accept=lambda: run.accept(folder))

    compose_and_run("eval", evaluate)
    return 0
