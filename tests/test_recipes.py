"""Every recipe composes, and its settings are good ones, though its data is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from facerec.cli.mistakes import config_folder
from facerec.evaluation.settings import EvalSettings
from facerec.loading.settings import DataSettings
from facerec.registry import build
from facerec.training.optimizers import OPTIMIZERS
from facerec.training.run import check_architecture, split_backbone
from facerec.training.schedules import SCHEDULES
from facerec.training.settings import TrainerSettings

RECIPES = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


def composed(name: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = hydra.compose("train", [f"experiment={name}", "output_dir=x"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_settings_that_the_program_takes(name: str) -> None:
    config = composed(name)
    if config["backbone"]["name"] == "timm":
        pytest.importorskip("timm", reason="needs the extra timm")
    build(TrainerSettings, "trainer", config["trainer"])
    SCHEDULES.from_section(config["schedule"])
    OPTIMIZERS.from_section(config["optimizer"])
    build(DataSettings, "data", config["data"])
    build(EvalSettings, "eval", config["eval"])
    _, architecture = split_backbone(config["backbone"])
    check_architecture(architecture, config["head"])


@pytest.mark.parametrize(
    ("name", "data", "classes", "rate"),
    [
        ("arcface_glint360k_r100_pfc", "glint360k", 360_232, 1.0),
        ("arcface_webface42m_r100_pfc02", "webface42m", 2_059_906, 0.2),
    ],
)
def test_the_recipes_of_partial_fc_are_the_published_ones(
    name: str, data: str, classes: int, rate: float
) -> None:
    config = composed(name)
    assert (config["data"]["name"], config["data"]["identities"]) == (data, classes)
    assert config["backbone"]["name"] == "iresnet100"
    head = config["head"]
    assert (head["name"], head["s"], head["m"]) == ("cosface", 64.0, 0.4)
    assert (head["sharded"], head["sample_rate"]) == (True, rate)
    assert (config["schedule"]["name"], config["trainer"]["epochs"]) == ("poly", 20)


def test_every_recipe_says_where_it_comes_from() -> None:
    for name in RECIPES:
        text = (Path(config_folder()) / "experiment" / f"{name}.yaml").read_text()
        assert text.startswith("# @package _global_\n# "), name
