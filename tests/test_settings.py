"""Settings classes built in Python: a value that is none of the choices is refused, as from a YAML file."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

import pytest

from facerec.errors import ConfigError
from facerec.evaluation.protocols.base import PROTOCOLS
from facerec.heads import HEADS, Head
from facerec.images.face_maker import FaceMaker
from facerec.loading.settings import DataSettings
from facerec.training.optimizers import OPTIMIZERS
from facerec.training.schedules import SCHEDULES
from facerec.training.settings import SETTINGS

REGISTRIES = (HEADS, SCHEDULES, OPTIMIZERS, PROTOCOLS)
REGISTERED = [registry.builder(name) for registry in REGISTRIES for name in registry.names()]
CLASSES: list[Any] = list(dict.fromkeys([*SETTINGS.values(), *REGISTERED]))


def listed(settings: Any) -> list[str]:
    """The fields of a class that take nothing but listed values."""
    hints = {name: str(hint) for name, hint in typing.get_type_hints(settings).items()}
    names = [field.name for field in dataclasses.fields(settings)]
    limited = [name for name in names if re.search("Literal|bool", hints[name])]
    return [name for name in limited if not re.search(r"\b(int|float|str|list)\b", hints[name])]


CHOICES = [(settings, name) for settings in CLASSES for name in listed(settings)]


def test_there_are_such_fields_in_every_kind_of_settings() -> None:
    names = {name for _, name in CHOICES}
    assert {"shuffle", "decoder", "on_error", "mirror", "compile", "unit", "memory", "thresholds"} <= names


@pytest.mark.parametrize(("settings", "name"), CHOICES, ids=lambda one: getattr(one, "__name__", one))
def test_a_value_that_is_none_of_the_choices_is_refused(settings: Any, name: str) -> None:
    needed = {"num_classes": 4, "embedding_size": 8} if issubclass(settings, Head) else {}
    with pytest.raises(ConfigError, match=rf"\.{name}=no such: must be "):
        settings(**needed, **{name: "no such"})


@pytest.mark.parametrize("wrong", [{"no_face": "keep"}, {"several": "first"}])
def test_a_maker_of_faces_refuses_a_way_that_it_does_not_know(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be one of "):
        FaceMaker(**wrong)


def test_the_refusal_names_value_and_choices() -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.shuffle=blok: must be one of full, block, identity, none$"
    ):
        DataSettings(shuffle="blok")  # type: ignore[arg-type]
    assert DataSettings(drop_last=None).drop_last is None
