"""Hydra's part of a command: compose the configuration, run, and say a user's mistake in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal import hydra as hydra_internals
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from facerec.cli.config_loader import ConfigLoader
from facerec.cli.errors import machine_errors
from facerec.cli.overrides import hydra_arguments
from facerec.errors import ConfigError, FacerecError, UserError, nearest
from facerec.launch import launched, place
from facerec.reporting.run_folder import RunFolder

log = logging.getLogger(__name__)

Task = Callable[[dict[str, Any], RunFolder], Any]


def config_folder() -> Path:
    """Where the configuration files are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose_and_run(config_name: str, task: Task) -> None:
    """Compose `config_name` with the command line and call `task(config, run_folder)` for each run.

    The configuration comes as plain values, its `output_dir` being the folder that Hydra really uses.

    A run of a sweep that fails does not keep the others from running.

    Raises:
        UserError: a setting that does not exist, or cannot be composed.
        FacerecError: what `task` raised, of a sweep the first; or a run that a launcher has started elsewhere
            did not come back.
    """
    failures: list[FacerecError] = []
    begun: list[str] = []
    if config_name == "export" and {"-m", "--multirun"} & set(sys.argv[1:]):
        raise UserError("-m: an export writes one file; call it once for each")
    sys.argv[1:] = hydra_arguments([*sys.argv[1:], *_alone_in_speaking(sys.argv[1:])])

    def job(config: DictConfig) -> Any:
        begun.append(HydraConfig.get().job.name)
        try:
            with RunFolder(config, f"facerec-{config_name}") as run, _with_origin(), machine_errors():
                _one_process_a_run()
                config.output_dir = str(run.path)
                try:
                    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
                except OmegaConfBaseException as error:  # Hydra would add a line of its own
                    raise _as_user_error(error) from error
                assert isinstance(plain, dict)
                return task({str(key): value for key, value in plain.items()}, run)
        except FacerecError as error:
            if not _in_this_process():
                raise
            # Raised after Hydra has returned: it would print lines of its own, and end a sweep here.
            failures.append(error)
            log.debug("run failed", exc_info=error)
            if HydraConfig.get().mode != RunMode.RUN:
                log.error("run %s: %s", HydraConfig.get().job.num, error)
            return None

    with _errors_pass_through():
        try:
            hydra_internals.ConfigLoaderImpl = ConfigLoader  # type: ignore[misc]  # no argument says it
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise _as_user_error(error) from error
        except OSError as error:
            if begun or isinstance(error, BrokenPipeError):
                raise
            # Hydra makes the folder before the run begins.
            raise UserError(f"output_dir: {error.filename} cannot be made ({error.strerror})") from error
        except (YAMLError, ValueError, RecursionError) as error:
            if begun:
                raise
            # What Hydra reads before the run begins: flags, files that are no YAML or nested too deep.
            reason = " ".join(str(error).split())[:400]
            raise UserError(f"the configuration cannot be read: {reason}; mend that file or flag") from error
        except Exception as error:
            if not _of_submitit(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise FacerecError(f"hydra/launcher: {' '.join(lines[:3])}") from error
        finally:
            _table_of_sweep()
    if failures:
        raise failures[0]


def _of_submitit(error: Exception) -> bool:
    """Whether it is submitit that complains: no SLURM here, or a job that has left no result."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return "submitit" in (type(error).__module__.partition(".")[0], where.partition(".")[0])


def _table_of_sweep() -> None:
    """The table of a sweep that Hydra gave up because a run elsewhere has failed; all have ended by then."""
    sweep = sys.modules.get("facerec.reporting.sweep")
    if sweep is not None:  # Hydra has loaded it for its callback
        sweep.write_table()


def _one_process_a_run() -> None:
    """Refuse several processes that do not know of each other: all would write to the same folder."""
    launcher = HydraConfig.get().launcher
    for key in ("nodes", "tasks_per_node"):
        number = launcher.get(key) or 1
        if number > 1:
            mend = (
                "must be 1: a run of a sweep is one process (runs of several: torchrun, scripts/train.sbatch)"
            )
            raise UserError(f"hydra.launcher.{key}={number}: {mend}")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and launched() == 1:
        raise UserError(
            f"srun: has started {tasks} processes that do not know of each other; "
            "start them with scripts/train.sbatch, or one torchrun a machine"
        )


def _alone_in_speaking(given: list[str]) -> list[str]:
    """What keeps all processes of torchrun but the first from writing logs and folders of their own."""
    if launched() == 1:
        return []
    if {"-m", "--multirun"} & set(given):
        raise UserError("-m: not under torchrun, which runs one training; sweep with a launcher of Hydra's")
    if place() == 0:
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
    """Whether the run is one of this very process, and not one that a launcher has started elsewhere."""
    config = HydraConfig.get()
    return config.mode == RunMode.RUN or config.launcher._target_.endswith("BasicLauncher")


@contextmanager
def _with_origin() -> Iterator[None]:
    """Let a `ConfigError` say where the value was set, after its mend."""
    try:
        yield
    except ConfigError as error:
        runtime = HydraConfig.get()
        given = [item.lstrip("+~").partition("=")[0] for item in runtime.overrides.task]
        section = error.key.partition(".")[0]
        choice = runtime.runtime.choices.get(section)
        experiment = runtime.runtime.choices.get("experiment")
        if error.key in given or (error.key == f"{section}.name" and section in given):
            origin = "from the command line"
        elif choice is not None:
            also = f" or configs/experiment/{experiment}.yaml" if experiment else ""
            origin = f"from configs/{section}/{choice}.yaml{also}"
            if also and error.mend.startswith("no such setting"):
                origin += f"; '~{error.key}' leaves it out"
        else:
            origin = f"from configs/{runtime.job.config_name}.yaml"
        raise ConfigError(error.key, error.value, f"{error.mend} ({origin})") from error


def _as_user_error(error: Exception) -> UserError:
    """What Hydra says over several lines, in one line with the nearest thing that does exist."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        if Path(error.override).exists() or error.override.endswith((".pt", ".pth", ".onnx", ".safetensors")):
            return UserError(f"{error.override}: of what is this the path? ckpt={error.override} is a model")
        return UserError(f"{error.override}: is not of the form key=value ({text.splitlines()[0]})")
    if isinstance(error, MissingConfigException):
        launcher = re.search(r"'(hydra/launcher)/(submitit\w+)'", text)
        if launcher:
            group, option = launcher.groups()
            return UserError(f"{group}={option}: needs an extra: pip install 'facerec[cluster]'")
        missing = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
        if missing:
            group, option = missing.groups()
            known = [path.stem for path in (config_folder() / group).glob("*.yaml") if path.stem != "base"]
            return UserError(f"{group}={option}: no such {group}; {nearest(option, known)}")
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous:
        mend = (
            "is several values; -m runs one after the other, [a,b] is a list, and quotes within quotes a text"
        )
        return UserError(f"{ambiguous.group(1)}: {mend}")
    full_key = re.search(r"full_key: (\S+)", text)
    where = f"{full_key.group(1)}: " if full_key else ""
    if "Missing mandatory value" in text:
        return UserError(f"{where or text}must be given on the command line")
    return UserError(where + " ".join(text.partition("\n    full_key: ")[0].split()))
