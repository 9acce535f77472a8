"""Every head has a config file that says what its code says, and refuses what it cannot take."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from facerec import plugins
from facerec.errors import ConfigError
from facerec.heads import HEADS, create_head
from tests.heads_cases import PUBLISHED

CONFIGS = Path(__file__).parents[1] / "configs" / "head"


def config(name: str) -> dict[str, Any]:
    """A head's YAML with those its defaults list, which are of this group."""
    loaded = OmegaConf.to_container(OmegaConf.load(file(name)))
    assert isinstance(loaded, dict)
    merged: dict[str, Any] = {}
    for part in loaded.pop("defaults", []):
        merged |= loaded if part == "_self_" else config(part)
    return merged or loaded


def file(name: str) -> Path:
    """A head's YAML, here or beside the plugin that registers it."""
    folders = [CONFIGS, *(folder / "head" for folder in plugins.config_folders())]
    return next(path for folder in folders if (path := folder / f"{name}.yaml").exists())


def test_every_published_head_is_there_and_every_config_has_a_head() -> None:
    assert set(PUBLISHED) <= set(HEADS.names())
    assert {path.stem for path in CONFIGS.glob("*.yaml")} <= {*HEADS.names(), "base"}


@pytest.mark.parametrize("name", HEADS.names())
def test_config_says_every_parameter_as_the_code_does(name: str) -> None:
    given = config(name)
    assert given.pop("name") == name
    from_config = create_head(name, num_classes=5, embedding_size=4, **given).settings()
    from_code = create_head(name, num_classes=5, embedding_size=4).settings()
    assert from_config == from_code
    changeable = set(from_code) - {"num_classes", "embedding_size"}
    assert changeable <= set(given), "a parameter without a line in the YAML"


@pytest.mark.parametrize("name", PUBLISHED)
def test_docstring_names_formula_source_and_parameters(name: str) -> None:
    builder = HEADS.builder(name)
    assert file(name).read_text().startswith("# ")
    text = inspect.getdoc(builder)
    assert text and len(text.splitlines()[0]) > 20
    for parameter in inspect.get_annotations(builder).keys() - {"init", "s"}:
        assert f"{parameter}:" in text, parameter
    if name not in ("softmax", "sface_quality"):
        assert any(str(year) in text for year in range(2006, 2023)), "no source"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("arcface", {"m": -0.1}, r"head\.m=-0\.1: an angular margin must be from 0 to π/2"),
    ("arcface", {"m": 2}, r"head\.m=2"),
    ("arcface", {"s": 0}, r"head\.s=0: must be greater than 0"),
    ("arcface", {"m": "wide"}, r"head\.m=wide: must be a number"),
    ("arcface", {"margin": 0.5}, r"head\.margin=0\.5: no such setting; did you mean m\?"),
    ("arcface", {"init": "ones"}, r"head\.init=ones: must be xavier, sface, unit, class_means or a"),
    ("arcface", {"init": 0.0}, r"head\.init=0"),
    ("arcface", {"memory": "none"}, r"head\.memory=none: must be one of auto, keep, recompute"),
    ("arcface", {"block_size": 0}, r"head\.block_size=0"),
    ("cosface", {"m": 2.0}, r"head\.m=2: a cosine margin"),
    ("combined", {"m1": 0}, r"head\.m1=0"),
    ("l2softmax", {"alpha": 0}, r"head\.alpha=0"),
    ("sphereface", {"m": 5}, r"head\.m=5: must be one of 1, 2, 3, 4"),
    ("lsoftmax", {"gamma": -1}, r"head\.gamma=-1"),
    ("sface", {"k": 0}, r"head\.k=0"),
    ("sface", {"a": 4}, r"head\.a=4: must be an angle from 0 to π"),
    ("sface_quality", {"c": -1}, r"head\.c=-1"),
    ("sface_quality", {"ema": 0}, r"head\.ema=0"),
    ("center", {"alpha": 1.5}, r"head\.alpha=1\.5"),
    ("center", {"lambda_c": -1}, r"head\.lambda_c=-1"),
    ("adaface", {"h": -1}, r"head\.h=-1"),
    ("magface", {"l_a": 0}, r"head\.l_a=0"),
    ("magface", {"u_a": 5}, r"head\.u_a=5: must be greater than l_a=10"),
    ("magface", {"u_m": 0.1}, r"head\.u_m=0\.1: must be at least l_m=0\.45"),
    ("curricularface", {"ema": 2}, r"head\.ema=2"),
    ("elasticface", {"sigma": -1}, r"head\.sigma=-1"),
    ("elasticface", {"kind": "sin"}, r"head\.kind=sin: must be one of arc, cos"),
    ("subcenter", {"k": 0}, r"head\.k=0: must be from 1 to 255"),
    ("mvsoftmax", {"t": -1}, r"head\.t=-1"),
    ("circle", {"m": 1}, r"head\.m=1"),
    ("sphereface2", {"lambda_p": 1}, r"head\.lambda_p=1"),
    ("sphereface2", {"t": 0.5}, r"head\.t=0\.5"),
    ("arcneg", {"sigma": 0}, r"head\.sigma=0"),
    ("npcface", {"m1": -1}, r"head\.m1=-1"),
    ("triplet", {"margin": 0}, r"head\.margin=0"),
    ("triplet", {"miner": "easy"}, r"head\.miner=easy: must be one of semihard, hard, batch_hard, all"),
    ("contrastive", {"margin": 3}, r"head\.margin=3"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_settings_out_of_range_are_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_head(name, num_classes=5, embedding_size=4, **given)


def test_unknown_head_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"head=arcfase: no such head; did you mean arcface\?"):
        create_head("arcfase", num_classes=5, embedding_size=4)
