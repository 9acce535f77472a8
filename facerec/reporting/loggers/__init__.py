"""Loggers of a training run, one per module; `logger=[console,metrics]` chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facerec.registry import Registry, build

if TYPE_CHECKING:
    from facerec.reporting.loggers.base import Logger

LOGGERS = Registry("logger", "facerec.reporting.loggers")


def make_loggers(config: Mapping[str, Any], folder: Path) -> list[Logger]:
    """The loggers of the sections below ``logger``, and the one that ``trainer.profile`` asks for.

    Args:
        config: of the run, with its sections logger and trainer.
        folder: where they write; nothing is written before the run starts.

    Raises:
        ConfigError: there is no such logger, or a setting of one is wrong.
    """
    from facerec.reporting.loggers.base import Figures

    sections = dict(config.get("logger") or {})
    if config["trainer"].get("profile") is True:
        sections.setdefault("profile", {"name": "profile"})
    figures = Figures()
    loggers = []
    for key, section in sections.items():
        given = {name: value for name, value in section.items() if name != "name"}
        builder = LOGGERS.builder(section.get("name", key))
        loggers.append(build(builder, f"logger.{key}", given, folder=folder, figures=figures))
    return loggers
