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

from tests.trajectories import trained

FIXTURES = Path(__file__).parent / "fixtures" / "trajectories"
STEP = ("step", "lr", "loss", "backbone_grad_norm", "head_grad_norm")
END = ("eval_embedding_first8", "eval_norm", "head_weight_first", "head_weight_norm")


TWO_STEPS_A_RATE = ("schedule.milestones=[1,2,3]", "trainer.epochs=4")

# Recipe, its program's fixture, and what was made smaller or shorter there.
PUBLISHED = [
    ("adaface_ms1mv2_ir50", "adaface", ("backbone=adaface_ir_18", *TWO_STEPS_A_RATE)),
    ("adaface_casia_ir50", "adaface", ("backbone=adaface_ir_18", *TWO_STEPS_A_RATE)),
    ("sface_casia_ir50", "sface", TWO_STEPS_A_RATE),
    ("sface_ms1mv2_ir50", "sface", ("head.a=0.87", "head.b=1.22", *TWO_STEPS_A_RATE)),
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
]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in STEP:
        one, other = ([row[key] for row in run["steps"]] for run in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11, err_msg=key)
    for key in END:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-9, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("recipe", ["arcface_ms1mv3_r100", "arcface_ms1mv2_ir50"])
def test_arcface_recipes_are_those_of_insightface(recipe: str, tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "trajectories" / "arcface_torch_arcface.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    theirs = json.loads(path.read_text())
    length = ("trainer.max_steps=8", "schedule.unit=steps", "schedule.warmup=2", "optimizer.lr=0.02")
    assert_same(trained(recipe, theirs, tmp_path, "backbone=iresnet18", *length), theirs)


@pytest.mark.parametrize(("recipe", "fixture", "smaller"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_recipes_are_their_programs(
    recipe: str, fixture: str, smaller: tuple[str, ...], tmp_path: Path
) -> None:
    theirs = json.loads((FIXTURES / f"{fixture}.json").read_text())
    assert_same(trained(recipe, theirs, tmp_path, *smaller), theirs)
