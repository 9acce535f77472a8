"""Recipes compute what the published programs compute, step by step, from the recipe's own settings.

The fixtures hold what each program gave in float64 (numbers alone, with the name and commit of the program):
loss, gradient norms and learning rate of every step, and embeddings and class weights at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facerec.backbones import BACKBONES
from tests.trajectories import composed, trained

FIXTURES = Path(__file__).parent / "fixtures" / "trajectories"
STEP = ("step", "lr", "loss", "backbone_grad_norm", "head_grad_norm")
END = ("eval_embedding_first8", "eval_norm", "head_weight_first", "head_weight_norm")


TWO_STEPS_A_RATE = ("schedule.milestones=[1,2,3]", "trainer.epochs=4")

# Recipe, its program's fixture, and what was made smaller or shorter there.
PUBLISHED = [
    ("adaface_ms1mv2_ir50", "adaface", ("backbone=adaface_ir_18", *TWO_STEPS_A_RATE)),
    ("sface_casia_ir50", "sface", TWO_STEPS_A_RATE),
    ("curricularface_ms1mv2_ir101", "curricularface", ("backbone.name=ir_50", *TWO_STEPS_A_RATE)),
    ("magface_ms1mv2_ir50", "magface", ("backbone.name=iresnet18", *TWO_STEPS_A_RATE)),
    (
        "arcface_ms1m_ir50_evolve",
        "evolve",
        ("schedule.milestones=[2,3]", "schedule.warmup=1", "trainer.epochs=4"),
    ),
    (  # sphereface_pytorch; the recipe is Caffe's, and its header names these differences
        "sphereface_casia_sphere20",
        "sphereface",
        (
            *("head.base=1363.6363636363637", "head.gamma=0.09090909090909091", "optimizer.decay_all=true"),
            *("head.normalize_gradient=false", "optimizer.lr=0.01", "schedule.milestones=[3,5,7]"),
            *("trainer.max_steps=8",),
        ),
    ),
    (
        "sphereface2_ms1mv2_r100",
        "sphereface2",
        (
            "backbone=iresnet18",
            "backbone.variant=opensphere",
            "schedule.milestones=[3,5,7]",
            "trainer.max_steps=8",
        ),
    ),
    (  # masks a tenth of the patches; width 64 and three blocks; one batch a step and every class
        "cosface_webface42m_vit_b_pfc03",
        "vit",
        (
            *("trainer.accumulate=1", "trainer.clip_norm=5", "head.sample_rate=1", "trainer.max_steps=8"),
            *("schedule.unit=steps", "schedule.warmup=2"),
        ),
    ),
]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], *, end: bool = True) -> None:
    for key in STEP:
        one, other = ([row[key] for row in run["steps"]] for run in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11, err_msg=key)
    for key in END if end else ():
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-9, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("steps", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_arcface_recipes_are_insightface(steps: int, tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "trajectories" / "arcface_torch_arcface.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    theirs = json.loads(path.read_text())
    theirs["steps"] = theirs["steps"][:steps]
    length = ("trainer.max_steps=8", "schedule.unit=steps", "schedule.warmup=2", "optimizer.lr=0.02")
    ours = trained("arcface_ms1mv3_r100", theirs, tmp_path, "backbone=iresnet18", *length)
    assert_same(ours, theirs, end=steps == 8)


def test_recipes_of_insightface_differ_as_its_configurations_do() -> None:
    config = composed("arcface_ms1mv3_r100")
    alike = ("optimizer", "schedule", "trainer", "input")
    for name in ("arcface_ms1mv2_ir50", "arcface_glint360k_r100_pfc", "arcface_webface42m_r100_pfc02"):
        other, older = composed(name), composed(f"{name}_2021")
        assert older["schedule"] == {**other["schedule"], "power": 2.0}
        other["optimizer"]["weight_decay"] = config["optimizer"]["weight_decay"]
        other["trainer"]["precision"] = config["trainer"]["precision"]
        assert [other[section] for section in alike] == [config[section] for section in alike]


@pytest.mark.parametrize("steps", [3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("recipe", "fixture", "smaller"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_recipes_are_their_programs(
    recipe: str,
    fixture: str,
    smaller: tuple[str, ...],
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BACKBONES.builder("vit_b"), "stages", (64, 3))
    theirs = json.loads((FIXTURES / f"{fixture}.json").read_text())
    theirs.setdefault("steps_per_epoch", len(theirs["steps"]))
    theirs["steps"] = theirs["steps"][:steps]
    assert_same(trained(recipe, theirs, tmp_path, *smaller), theirs, end=steps == 8)


@pytest.mark.parametrize(
    ("one", "other", "head"),
    [
        ("adaface_ms1mv2_ir50", "adaface_casia_ir50", {}),
        ("sface_casia_ir50", "sface_ms1mv2_ir50", {"a": 0.80, "b": 1.23}),
    ],
)
def test_recipes_of_one_program_differ_in_data_and_margins(
    one: str, other: str, head: dict[str, float]
) -> None:
    first, second = composed(one), composed(other)
    first["schedule"]["milestones"] = second["schedule"]["milestones"]
    first["trainer"]["reference"] = second["trainer"]["reference"]  # a published curve
    assert {**first["head"], **head} == second["head"]
    for section in ("backbone", "optimizer", "schedule", "trainer", "input"):
        assert first[section] == second[section]
    assert first["data"]["augment"] == second["data"]["augment"]
