"""Compose the configuration of a command by Hydra, and call its task for each run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal import hydra as hydra_internals
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from facerec import launch, plugins
from facerec.cli.config_loader import ConfigLoader
from facerec.cli.from_run import from_run
from facerec.cli.hydra_errors import as_user_error, explained, with_origin
from facerec.cli.mistakes import config_folder
from facerec.cli.overrides import hydra_arguments, plugins_of
from facerec.errors import Pruned, UserError, machine_errors
from facerec.reporting import search
from facerec.reporting.record import finished_before, plain
from facerec.reporting.run_folder import RunFolder
from facerec.reporting.sweep import write_table

log = logging.getLogger(__name__)

Task = Callable[[dict[str, Any], RunFolder], Any]


def compose_and_run(config_name: str, task: Task) -> None:
    """Compose `config_name` with the command line and call `task(config, run_folder)` for each run.

    The configuration comes as plain values, with the `output_dir` that Hydra really uses. A run of a sweep
    that fails does not keep the others from running.

    Raises:
        UserError: a setting that does not exist, or cannot be composed.
        FacerecError: what `task` raised, of a sweep the first; or a run that a launcher has started elsewhere
            did not come back.
    """
    failures: list[Exception] = []
    begun: list[str] = []
    if config_name == "export" and {"-m", "--multirun"} & set(sys.argv[1:]):
        raise UserError("-m: an export writes one file; call it once for each")
    arguments, repeated = from_run(sys.argv[1:]) if config_name == "train" else (sys.argv[1:], None)
    sys.argv[1:] = hydra_arguments([*arguments, *_quiet_ranks(arguments)])
    plugins.use(plugins_of(sys.argv[1:]))

    def job(config: DictConfig) -> Any:
        begun.append(HydraConfig.get().job.name)
        try:
            with RunFolder(config, f"facerec-{config_name}") as run, with_origin(), machine_errors():
                _require_one_process()
                plugins.use(plugins_of([f"plugins={config.plugins}"]))  # where a launcher has started it
                config.output_dir = str(run.path)
                if config_name == "train" and (done := _done_before(config, run)) is not None:
                    return done
                try:
                    settings = plain(config, resolve=True, throw_on_missing=True)
                except OmegaConfBaseException as error:  # Hydra would add a line of its own
                    raise as_user_error(error) from error
                return task(settings, run)
        except Pruned:
            return search.PRUNED
        except Exception as error:
            if not _in_this_process():
                raise
            # Raised after Hydra has returned: it would print lines of its own, and end a sweep here.
            failures.append(error)
            log.debug("run failed", exc_info=error)
            if HydraConfig.get().mode != RunMode.RUN:
                log.error("run %s: %s", HydraConfig.get().job.num, error)
            return None

    with _errors_pass_through(), explained(begun):
        try:
            search.register()
            ConfigLoader.repeated = repeated
            hydra_internals.ConfigLoaderImpl = ConfigLoader  # type: ignore[misc]  # no argument says it
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(job)()
        finally:
            ConfigLoader.repeated = None  # for this command alone
            write_table()  # where a launcher's run has failed, Hydra leaves its callback out
    if failures:
        raise failures[0]


def explain(config_name: str, arguments: list[str]) -> list[str]:
    """Return the lines of ``--explain [group|key]`` for the settings beside it.

    Raises:
        UserError: a setting, group or key that does not exist; an option.
    """
    from facerec.cli import settings_text

    at = arguments.index("--explain")
    topic, rest = None, arguments[at + 1 :]
    if rest and not rest[0].startswith("-"):
        topic, equals, _ = rest[0].partition("=")  # --explain head=cosface
        rest = rest if equals else rest[1:]
    settings = hydra_arguments([*arguments[:at], *rest])
    for option in (one for one in settings if one.startswith("-")):
        raise UserError(f"{option}: not beside --explain, which takes settings alone")
    plugins.use(plugins_of(settings))
    with explained([]), hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        hydra_internals.ConfigLoaderImpl = ConfigLoader  # type: ignore[misc]
        config = hydra.compose(config_name, settings, return_hydra_config=True)
    return settings_text.explain(config, topic)


def _done_before(config: DictConfig, run: RunFolder) -> float | None:
    """Return the outcome of a run of a repeated sweep that has finished with the same settings; else None."""
    hydra = HydraConfig.get()
    outcome = None if hydra.mode == RunMode.RUN else finished_before(config, run.path)
    if outcome is not None:
        log.info("run %s: has finished already with these settings (%s)", hydra.job.num, run.path)
    return outcome


def _require_one_process() -> None:
    """Refuse several processes outside of a process group: all would write to the same folder."""
    launcher = HydraConfig.get().launcher
    for key in ("nodes", "tasks_per_node"):
        number = launcher.get(key) or 1
        if number > 1:
            hint = "a run of a sweep is one process (runs of several: torchrun, scripts/train.sbatch)"
            raise UserError(f"hydra.launcher.{key}={number}: must be 1: {hint}")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and launch.world_size() == 1:
        raise UserError(
            f"srun: has started {tasks} processes that do not know of each other; "
            "start them with scripts/train.sbatch, or one torchrun a machine"
        )


def _quiet_ranks(given: list[str]) -> list[str]:
    """Return settings that keep ranks other than 0 from writing logs and folders of their own."""
    if launch.world_size() == 1:
        return []
    if {"-m", "--multirun"} & set(given):
        raise UserError("-m: not under torchrun, which runs one training; sweep with a launcher of Hydra's")
    if launch.rank() == 0:
        return []
    return ["hydra/job_logging=quiet", "hydra.run.dir=."]


@contextmanager
def _errors_pass_through() -> Iterator[None]:
    """Keep Hydra from printing errors and ending the process by itself."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _in_this_process() -> bool:
    """Return True unless a launcher has started the run in another process."""
    config = HydraConfig.get()
    return config.mode == RunMode.RUN or config.launcher._target_.endswith("BasicLauncher")
