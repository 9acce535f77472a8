"""`facerec-train`: compose the configuration and train."""

from __future__ import annotations

import logging
import shlex
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
    """Train in the run's folder and return the number that chooses best.pt, if there was an evaluation."""
    from facerec import distributed, plugins, process
    from facerec.cli.mistakes import config_folder
    from facerec.cli.stages import compose_stages
    from facerec.evaluation.judgement import score
    from facerec.registry import build
    from facerec.reporting.history import History
    from facerec.reporting.loggers import make_loggers
    from facerec.reporting.pruning import pruning
    from facerec.reporting.reference import Compared, open_reference
    from facerec.training.dry_run import dry_run
    from facerec.training.run import assemble, device_of
    from facerec.training.settings import TrainerSettings

    settings = build(TrainerSettings, "trainer", config.get("trainer") or {})
    configs = [config_folder(), *plugins.config_folders()]
    if settings.dry_run:
        run.leave_no_trace()
        process.keep_memory()
        with distributed.process_group(device_of(config)):
            if settings.reference is not None:
                open_reference(settings.reference, configs)
            dry_run(config, compose_stages(config["stages"]))
        return None
    run.hold()
    allocator = process.keep_memory()
    with distributed.process_group(device_of(config)):
        folder = distributed.broadcast_object(run.path)
        rank_zero = distributed.rank() == 0
        reporters = [History(folder), *make_loggers(config, folder), *pruning()]
        if settings.reference is not None:
            reporters.insert(1, Compared(open_reference(settings.reference, configs), folder))
        composed = compose_stages(config["stages"])
        config |= {"output_dir": str(folder)}
        trainer = assemble(config, folder, reporters if rank_zero else (), composed)
        if allocator:
            log.info("%-10s %s", "allocator", allocator)
        run.accept(folder)
        results = trainer.fit()
    if rank_zero:
        log_outcome(trainer, folder, resumable=run.named)
    if trainer.interrupted is not None:
        raise StoppedBySignal(trainer.interrupted)
    return score(results, trainer.eval_settings.select) if results else None


def log_outcome(trainer: Trainer, folder: Path, *, resumable: bool) -> None:
    """Log the numbers that choose best.pt, what the run left and what to type next; or what signal ended it.

    Args:
        folder: the run's.
        resumable: the same command has the same folder; else it needs ``output_dir``.
    """
    from facerec.evaluation.judgement import number_of

    step, steps = trainer.position.step, trainer.steps()
    select = trainer.eval_settings.select
    if trainer.interrupted is not None:
        more = "" if resumable else f" with {shlex.quote(f'output_dir={folder}')}"
        said = f"saved at step {step:,} of {steps:,}; the same command{more} goes on"
        said = said if step else "stopped before the first step; nothing to save"
        log.info("%s: %s", Signals(trainer.interrupted).name, said)
    else:
        averaged = {f"ema/{name}": result for name, result in trainer.averaged.items()}
        for name, result in (trainer.results | averaged).items():
            number = number_of(result, select)
            if number is not None:
                log.info("%s: %s %s on %s pairs", name, number.phrase, number.text, f"{result.pairs:,}")
    shown = "; report.html shows it all" if (folder / "report.html").is_file() else ""
    log.info("run folder: %s%s", folder, shown)
    best = folder / "checkpoints" / "best.pt"
    if trainer.interrupted is None and step:
        kept = f"{_best_of(trainer)}, and the last" if best.is_file() else "the last"
        log.info("finished   at step %s of %s; checkpoints/ has %s", f"{step:,}", f"{steps:,}", kept)
        if best.is_file():
            below = best.absolute().is_relative_to(Path.cwd())
            ckpt = shlex.quote(f"ckpt={best.absolute().relative_to(Path.cwd()) if below else best}")
            log.info("next       facerec-eval %s, or facerec-export %s format=onnx", ckpt, ckpt)


def _best_of(trainer: Trainer) -> str:
    """Say which step best.pt is of, and the number and sets that have chosen it."""
    from facerec.evaluation.judgement import number_of

    at, results = trainer.position, trainer.results
    numbers = [number_of(result, at.judged_by or None) for result in results.values()]
    phrase = ", ".join(dict.fromkeys(number.phrase for number in numbers if number is not None))
    step = {-1: "", 0: " of step 0, before training,"}.get(at.best_step, f" of step {at.best_step:,},")
    mean = f"the mean of {', '.join(results)}" if len(results) > 1 else "".join(results)
    return f"best.pt{step} the best by {phrase} ({abs(at.best):.5f}, {mean})"
