"""Explain what Hydra complains of, over several lines, in one line with a hint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import ListConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from facerec.cli.mistakes import newest_model, no_such_choice
from facerec.errors import ConfigError, FacerecError, UserError


@contextmanager
def with_origin() -> Iterator[None]:
    """Add to a `ConfigError` where the value was set."""
    try:
        yield
    except ConfigError as error:
        runtime = HydraConfig.get()
        given = [item.lstrip("+~").partition("=")[0] for item in runtime.overrides.task]
        section = error.key.partition(".")[0]
        choice = runtime.runtime.choices.get(section)
        if isinstance(choice, ListConfig):  # of a group with several choices, keys are below their names
            choice = error.key.split(".")[1]
        experiment = runtime.runtime.choices.get("experiment")
        inside = any("." in key and error.key.startswith((f"{key}[", f"{key}.")) for key in given)
        if error.key in given or inside or (error.key == f"{section}.name" and section in given):
            origin = "from the command line"
        elif choice is not None:
            also = f" or configs/experiment/{experiment}.yaml" if experiment else ""
            origin = f"from configs/{section}/{choice}.yaml{also}"
            if also and error.hint.startswith("no such setting"):
                origin += f"; '~{error.key}' leaves it out"
        else:
            origin = f"from configs/{runtime.job.config_name}.yaml"
        raise ConfigError(error.key, error.value, f"{error.hint} ({origin})") from error


@contextmanager
def explained(begun: Sequence[object]) -> Iterator[None]:
    """Turn errors of Hydra and of its launchers into errors of ours.

    Args:
        begun: not empty once a run has begun; what is no error of Hydra's is then left alone.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) from error
    except OSError as error:
        if begun or isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"output_dir: {error.filename} cannot be made ({error.strerror})") from error
    except (YAMLError, ValueError, RecursionError) as error:  # flags; files that are no YAML, or too deep
        if begun:
            raise
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"the configuration cannot be read: {reason}; correct that file or flag") from error
    except Exception as error:
        if not _of_submitit(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FacerecError(f"hydra/launcher: {' '.join(lines[:3])}") from error


def as_user_error(error: Exception) -> UserError:
    """Return one line for an error of Hydra's, with the nearest thing that does exist."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return UserError(f"{error.override}: is not of the form key=value ({text.splitlines()[0]})")
    if isinstance(error, MissingConfigException):
        launcher = re.search(r"'(hydra/launcher)/(submitit\w+|joblib)'", text)
        if launcher:
            group, option = launcher.groups()
            extra = "parallel" if option == "joblib" else "cluster"
            return UserError(f"{group}={option}: needs an extra: pip install 'facerec[{extra}]'")
        missing = re.search(r"Could not (?:find|load) '((?:hydra/)?\w+)/([^']+)'", text)
        if missing:
            return no_such_choice(*missing.groups())
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous:
        key, _, value = ambiguous.group(1).partition("=")
        if re.fullmatch(r"[-\d]+,\d+", value):
            hint = f"a decimal has a point: {key}={value.replace(',', '.')} (and -m runs several values)"
            return UserError(f"{key}={value}: {hint}")
        if key.endswith(("targets", "metrics")) or key in ("ckpt", "logger"):
            return UserError(f"{key}={value}: must be a list: '{key}=[{value}]'")
        hint = "-m runs one after the other, [a,b] is a list, and quotes within quotes a text"
        return UserError(f"{ambiguous.group(1)}: is several values; {hint}")
    kinds = re.fullmatch(r"Error merging override (.*)", text.partition("\n")[0])
    if kinds:
        return UserError(f"{kinds[1]}: is a mapping, and that setting is a list: [a,b]")
    foreign = re.match(r"Could not override '([^']*)'", text)
    if foreign:
        return UserError(f"{foreign[1]}: no such setting of this command; --help lists all")
    full_key = re.search(r"full_key: (\S+)", text)
    where = f"{full_key.group(1)}: " if full_key else ""
    if "Missing mandatory value" in text:
        newest = newest_model() if where == "ckpt: " else None
        hint = f": ckpt={newest} is the newest here" if newest else ""
        return UserError(f"{where or text}must be given on the command line{hint}")
    return UserError(where + " ".join(text.partition("\n    full_key: ")[0].split()))


def _of_submitit(error: Exception) -> bool:
    """Return True if submitit raised it: no SLURM here, or a job that has left no result."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return "submitit" in (type(error).__module__.partition(".")[0], where.partition(".")[0])
