"""The end of a search's part in a run: each evaluation is told, and a run that others outdo is ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from facerec.errors import Pruned
from facerec.evaluation.judgement import score
from facerec.reporting.search import JOURNAL, STUDY, TARGET, load_optuna, pruner_of, storage_of
from facerec.training.reporter import Reporter, Results, Run

log = logging.getLogger(__name__)


class Pruning(Reporter):
    """Tells the search each evaluation, and ends the run where others did better at that step.

    Args:
        folder: the sweep's.
        number: of the run.
        settings: of the sweeper.
    """

    def __init__(self, folder: Path, number: int, settings: Mapping[str, Any]) -> None:
        optuna = load_optuna()
        self.path = folder / JOURNAL
        pruner = pruner_of(settings["prune"], settings["startup_trials"])
        study = optuna.load_study(study_name=STUDY, storage=storage_of(folder), pruner=pruner)
        (frozen,) = (one for one in study.get_trials(deepcopy=False) if one.number == number)
        self._trial = optuna.Trial(study, frozen._trial_id)

    def evaluated(self, run: Run, results: Results) -> None:
        """Report the number that chooses best.pt."""
        step = run.position.step
        self._trial.report(score(results, run.eval_settings.select), step)
        if run.progress().fraction < 1 and self._trial.should_prune():
            log.info("pruned at step %d: others were better there", step)
            raise Pruned(f"pruned at step {step}")


def pruning() -> Sequence[Reporter]:
    """The reporter of a run that a search of `OptunaSweeper` has started; else none."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or hydra.sweeper._target_ != TARGET:
        return []
    return [Pruning(Path(hydra.sweep.dir), int(hydra.job.num), hydra.sweeper)]
