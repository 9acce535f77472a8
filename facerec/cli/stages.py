"""Compose the settings of a run's stages, as those of the command line are composed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facerec.cli.config_loader import NO_ROOT, ConfigLoader
from facerec.cli.hydra_errors import as_user_error
from facerec.cli.overrides import mixture
from facerec.errors import require
from facerec.training.stages import SECTIONS, entries, naming

_WORD = re.compile(r"[A-Za-z_][\w/]*")
_RESERVED = ("null", "true", "false", "nan", "inf")


def compose_stages(given: Any) -> list[dict[str, Any]]:
    """Compose, for each of the `stages` of the running job, the settings of the sections that one may change.

    They are those of the command line with what this stage and the ones before it give at its end, so that
    ``head: arcface`` chooses of the group. ``without: [head.m]`` leaves a setting out.

    Raises:
        UserError: a setting that does not exist, or that no stage may change; it names the stage.
    """
    stages = entries(given)
    if not stages:
        return []
    loader: Any = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoader)
    hydra, repeated = HydraConfig.get(), loader.repeated
    overrides = list(hydra.overrides.task)
    composed = []
    loader.origin = "it or the command line"
    try:
        for number, (begin, settings) in enumerate(stages, 1):
            with naming(number, begin):
                for key, value in settings.items():
                    overrides = _with(overrides, key, value)
                if loader.repeated is not None:
                    loader.repeated = replace(loader.repeated, anew=loader.repeated.anew | settings.keys())
                try:
                    config = loader.load_configuration(hydra.job.config_name, overrides, RunMode.RUN)
                    plain = {
                        one: OmegaConf.to_container(config[one], resolve=True, throw_on_missing=True)
                        for one in SECTIONS
                    }
                except (HydraException, OmegaConfBaseException) as error:
                    raise as_user_error(error) from error
                mixed = "data.root" in settings and config.data.kind == "mix"
                require(not mixed, "data.root", settings.get("data.root"), NO_ROOT)
                composed.append(plain)
    finally:
        loader.repeated, loader.origin = repeated, ConfigLoader.origin
    return composed


def _with(overrides: list[str], key: str, value: Any) -> list[str]:
    """Add a setting to those of a command line."""
    if not key.startswith("~"):
        return [*overrides, *mixture(f"{key}={_text(value)}")]
    kept = [one for one in overrides if one.partition("=")[0].lstrip("+") != key[1:]]
    return kept if len(kept) < len(overrides) else [*overrides, key]


def _text(value: Any) -> str:
    """Return a value in the grammar of a command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, Mapping):
        escaped = {re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)): one for key, one in value.items()}
        return "{" + ",".join(f"{key}:{_text(one)}" for key, one in escaped.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str) and (value in _RESERVED or not _WORD.fullmatch(value)):
        quoted = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
        return f"'{quoted}'"
    return str(value)
