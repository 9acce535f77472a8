"""Search for settings with Optuna: a sweeper of Hydra that chooses the next runs, and ends hopeless ones."""

from __future__ import annotations

import importlib
import logging
import math
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from facerec.errors import UserError, counted, require

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

PRUNED = "pruned"  # what such a run returns to the sweeper
JOURNAL = "optuna.journal"
STUDY = "facerec"


class OptunaSweeper(Sweeper):
    """Chooses settings by TPE: ``head.m=interval(0.2,0.6)``, ``choice(a,b)``, ``a,b``, ``range(1,9)``.

    ``tag(log,interval(…))`` searches on a logarithmic scale. What is known lies in the sweep's folder: the
    same command goes on with the search.

    Args:
        n_trials: runs in all, those of an earlier start of the same sweep among them.
        n_jobs: runs that the launcher gets at once.
        seed: of the search.
        prune: end runs whose evaluations are below the median of the others at the same step.
        startup_trials: runs at random, none of which is pruned, before the search learns.
    """

    __module__ = "hydra_plugins.facerec"  # the only name under which Hydra takes sweepers

    def __init__(self, n_trials: int, n_jobs: int, seed: int, prune: bool, startup_trials: int) -> None:
        for name, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            good = isinstance(value, int) and value >= 1
            require(good, f"hydra.sweeper.{name}", value, "must be an integer, 1 or more")
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.seed, self.prune, self.startup_trials = seed, prune, startup_trials

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives, and make its launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search."""
        optuna = load_optuna()
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides(arguments)
        fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
        space = {one.get_key_element(): _distribution(one) for one in parsed if one.is_sweep_override()}
        if not space:
            raise UserError("hydra/sweeper=optuna: nothing varies; give ranges: 'head.m=interval(0.2,0.6)'")
        study = optuna.create_study(
            study_name=STUDY,
            storage=storage_of(folder),
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                seed=self.seed, n_startup_trials=self.startup_trials, constant_liar=self.n_jobs > 1
            ),
            pruner=pruner_of(self.prune, self.startup_trials),
        )
        for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(left.number, state=optuna.trial.TrialState.FAIL)  # of a search that was killed
        returns = []
        while (left := self.n_trials - len(study.get_trials(deepcopy=False))) > 0:
            trials = [study.ask(space) for _ in range(min(left, self.n_jobs))]
            batch = [[*fixed, *(f"{k}={_text(v)}" for k, v in one.params.items())] for one in trials]
            self.validate_batch_is_legal(batch)
            ended = self.launcher.launch(batch, initial_job_idx=trials[0].number)
            for trial, one in zip(trials, ended, strict=True):
                _tell(study, trial.number, one)
            returns.append(ended)
        _log_best(study)
        return returns


def register() -> None:
    """Let Hydra find the sweeper under the name of a plugin, which is no file."""
    for name, members in (("hydra_plugins", {}), ("hydra_plugins.facerec", {"OptunaSweeper": OptunaSweeper})):
        try:
            importlib.import_module(name)
        except ImportError:
            module = sys.modules[name] = types.ModuleType(name)
            vars(module).update(members)
    Plugins.instance().register(OptunaSweeper)


def _tell(study: optuna.Study, number: int, ended: Any) -> None:
    """Tell the study how a run has ended."""
    states = load_optuna().trial.TrialState
    value = ended.return_value if ended.status.name == "COMPLETED" else None
    if value == PRUNED:
        study.tell(number, state=states.PRUNED)
    elif isinstance(value, int | float) and math.isfinite(value):
        study.tell(number, float(value))
    else:
        study.tell(number, state=states.FAIL)


def _log_best(study: optuna.Study) -> None:
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    if "COMPLETE" in states:
        said = ", ".join(f"{key}={_text(value)}" for key, value in study.best_params.items())
        log.info("best run %d: %.5f with %s", study.best_trial.number, study.best_value, said)
    pruned, failed = states.count("PRUNED"), states.count("FAIL")
    log.info("%s, %d pruned, %d failed", counted(len(states), "run"), pruned, failed)


def _distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """What Optuna draws from, of a sweep in Hydra's words.

    Raises:
        UserError: there is no such distribution.
    """
    distributions, value = load_optuna().distributions, override.value()
    if isinstance(value, ChoiceSweep | RangeSweep):
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    log_scale = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        return distributions.FloatDistribution(value.start, value.end, log=log_scale)
    raise UserError(
        f"{override.input_line}: cannot be searched; use interval(a,b), choice(a,b) or range(a,b)"
    )


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def load_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("hydra/sweeper=optuna: needs an extra: pip install 'facerec[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage_of(folder: Path) -> Any:
    """The record of the search, a file that processes of one or several machines may share."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def pruner_of(prune: bool, startup_trials: int) -> Any:
    pruners = load_optuna().pruners
    return pruners.MedianPruner(n_startup_trials=startup_trials) if prune else pruners.NopPruner()


TARGET = f"{OptunaSweeper.__module__}.{OptunaSweeper.__name__}"
