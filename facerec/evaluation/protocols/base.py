"""Base class of protocols and their registry, the config group `eval`.

A protocol is a settings dataclass in a module of this package (or of a plugin), and a file
``configs/eval/NAME.yaml`` that says ``protocol: NAME``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from facerec.evaluation.metrics.base import create_metrics
from facerec.evaluation.results import Result, logger
from facerec.evaluation.settings import EvalSettings
from facerec.registry import Registry, build

if TYPE_CHECKING:
    from facerec.models.model import Model

PROTOCOLS: Final = Registry("eval.protocol", "facerec.evaluation.protocols")


@dataclass(frozen=True)
class Protocol(EvalSettings, ABC):
    """The settings of a protocol, checked like all settings, and how it judges a model.

    Attributes:
        from_data: settings that the configuration of a data set (``data=lfw``) gives where they are null.
    """

    from_data: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def results(self, model: Model) -> Mapping[str, Result]:
        """Results of `model` by the name of the test."""

    def run(self, model: Model) -> Mapping[str, Result]:
        """The same, with the results' lines in the log."""
        results = self.results(model)
        for name, result in results.items():
            for line in result.log_lines(name, model.step):
                logger.info(line)
        return results

    def begin(self, first: Model) -> Callable[[Model], Mapping[str, Result]]:
        """Return the function that evaluates each of several models; `first` may complete the settings."""
        return self.run

    @property
    def views(self) -> str:
        """``flip-TTA`` or ``no flip``, for the protocol's name."""
        return "flip-TTA" if self.flip else "no flip"


def create_protocol(section: Mapping[str, Any]) -> Protocol:
    """The protocol that the configuration section `eval` names; null values stand for the defaults.

    Raises:
        ConfigError: unknown protocol or setting, or a value of the wrong type or out of range.
    """
    builder: type[Protocol] = PROTOCOLS.builder(section["protocol"])  # type: ignore[assignment]
    protocol = build(builder, "eval", {key: value for key, value in section.items() if value is not None})
    create_metrics(protocol.metrics)
    return protocol
