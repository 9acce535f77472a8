"""The config group `logger`: each can be chosen alone, settings are checked early, figures are drawn once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from facerec.cli.mistakes import config_folder
from facerec.errors import ConfigError
from facerec.packs.verification import VerificationSet
from facerec.reporting import verification_figures
from facerec.reporting.loggers import LOGGERS, make_loggers
from tests.tiny_run import tiny_trainer

USUAL = ["console", "metrics", "tensorboard", "results"]


def config_of(*overrides: str) -> Any:
    """facerec-train's configuration, its interpolations left as they are."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("train", list(overrides))
    return {key: OmegaConf.to_container(composed[key]) for key in ("logger", "trainer") if key in composed}


@pytest.mark.parametrize("name", LOGGERS.names())
def test_each_logger_can_be_chosen_alone_and_follows_a_run(name: str, tmp_path: Path) -> None:
    loggers = make_loggers(config_of(f"logger=[{name}]"), tmp_path)
    assert [type(one) for one in loggers] == [LOGGERS.builder(name)]
    tiny_trainer(tmp_path, trainer_max_steps=2, reporters=loggers).fit()


def test_the_usual_ones_are_chosen_unless_others_are_and_a_profile_is_added(tmp_path: Path) -> None:
    def chosen(*overrides: str) -> list[str]:
        loggers = make_loggers(config_of(*overrides), tmp_path)
        return [name for one in loggers for name in LOGGERS.names() if LOGGERS.builder(name) is type(one)]

    assert chosen() == USUAL
    assert chosen("trainer.profile=true") == [*USUAL, "profile"]
    assert chosen("logger=[profile,console]", "trainer.profile=true") == ["profile", "console"]
    assert chosen("logger=[]") == []


def test_settings_of_loggers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.metrics\.every=2: no such setting"):
        make_loggers(config_of("+logger.metrics.every=2"), tmp_path)
    with pytest.raises(ConfigError, match="logger=consol: no such logger; did you mean console"):
        make_loggers(config_of("logger.console.name=consol"), tmp_path)


def test_figures_are_drawn_once_for_all_loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []

    def counted(name: str, result: object) -> Mapping[str, Any]:
        drawn.append(name)
        return figures_of(name, result)

    figures_of = verification_figures.figures_of
    monkeypatch.setattr(verification_figures, "figures_of", counted)
    trainer = tiny_trainer(tmp_path, trainer_epochs=2, reporters=make_loggers(config_of(), tmp_path))
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 255, (40, 16, 16, 3), np.uint8))
    trainer.verification_sets = [VerificationSet("made", images, np.arange(80) % 40, np.arange(40) % 2 == 0)]
    trainer.fit()
    assert drawn == ["made", "made"]  # once per evaluation, for TensorBoard and the files
    assert (tmp_path / "made_roc.png").is_file()
