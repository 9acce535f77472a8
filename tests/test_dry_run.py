"""`trainer.dry_run=true` tries a recipe without its data, says what it takes, and leaves nothing."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from facerec.backbones import BACKBONES
from facerec.errors import FacerecError
from facerec.training.dry_run import dry_run
from facerec.training.loop import Trainer
from tests.test_cli_train import command, failed
from tests.test_recipes import RECIPES
from tests.trajectories import composed

SMALL = (
    *("data.identities=12", "data.images=48", "trainer.batch_size=4", "data.workers=1"),
    *("trainer.device=cpu", "trainer.precision=fp32", "data.root=nowhere"),
)


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with one unit per stage, transformers with two narrow blocks."""
    for name in BACKBONES.names():
        network = BACKBONES.builder(name)
        stages = getattr(network, "stages", ())
        if len(stages) == 4:
            monkeypatch.setattr(network, "stages", (1, 1, 1, 1))
        elif len(stages) == 2:
            monkeypatch.setattr(network, "stages", (64, 2))


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_two_steps_without_its_data(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = composed(name, *SMALL, "data.size=64" if name == "orl_noise" else "data.size=32")
    if config["backbone"]["name"] == "timm":
        pytest.importorskip("timm", reason="needs the extra timm")
    with caplog.at_level(logging.INFO):
        dry_run(config)
    assert re.search(r"whole run +[\d,]+ steps: ", caplog.text)


TRIED = ("experiment=lfw_small", *SMALL, "data.size=32")


def test_the_command_says_memory_time_and_what_it_did_not_try_and_leaves_nothing(tmp_path: Path) -> None:
    ended = command("facerec-train", "trainer.dry_run=true", *TRIED, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stdout.split())
    for words in (
        "dry run lfw: 12 identities, 48 images (by its settings, data.root=nowhere is not there)",
        "in main memory, Python's and torch's own in it (forecast without those: ",
        "for 4 images, ",
        "whole run 60 steps: ",  # 5 epochs of 12 batches
        "not tried the data and the time to read and decode them; checkpoints; evaluation on lfw_set10",
        "no run folder, no checkpoint and no record is left",
    ):
        assert words in said, words
    assert not list(tmp_path.iterdir())


def test_numbers_are_those_of_the_data_where_they_are_there(tmp_path: Path, lfw_root: Path) -> None:
    given = [one for one in TRIED if not one.startswith("data.root=") and "identities" not in one]
    ended = command("facerec-train", "trainer.dry_run=true", *given, f"data.root={lfw_root}", cwd=tmp_path)
    assert re.search(r"dry run +lfw: 5,\d{3} identities, 11,\d{3} images \(those at ", ended.stdout)


def test_the_sources_of_a_mixture_are_added_up(tmp_path: Path) -> None:
    given = [one for one in TRIED if "identities" not in one and "images" not in one and "root" not in one]
    mixed = ("data=[casia,ms1mv2]", "backbone.embedding_size=8", "eval.targets=[]")
    ended = command("facerec-train", "trainer.dry_run=true", *given, *mixed, cwd=tmp_path)
    assert "96,314 identities, 6,313,276 images (by its settings, data.root=" in ended.stdout, ended.stderr
    assert "data.root=./data/faces_emore is not there)" in ended.stdout


def test_stages_are_tried_up_to_the_first_change(caplog: pytest.LogCaptureFixture) -> None:
    stages = "stages=[{epoch: 1, head.m: 0.37}, {epoch: 2, head.m: 0.33}]"
    config = composed("lfw_small", *SMALL, "data.size=32", "eval.targets=[]", stages)
    with caplog.at_level(logging.INFO):
        dry_run(config, [config | {"head": config["head"] | {"m": m}} for m in (0.37, 0.33)])
    assert "2 stages after the first, whose time is taken for all" in caplog.text


def test_a_step_is_what_the_trainer_does_with_all_accumulated_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, batches: (steps.append(len(batches)), step(self, batches))
    )
    dry_run(composed("lfw_small", *SMALL, "data.size=32", "trainer.accumulate=3"))
    assert steps == [3, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("data=rec", "data.root=nowhere"),
            "data.root=nowhere: there is no such folder, and data.identities",
        ),
        (("teacher.embeddings=t.npy",), "teacher.embeddings=t.npy: belongs to the real images"),
        (("teacher.ckpt=t.pt", "teacher.logits=1"), "teacher.logits=1: begins with a pass over all images"),
        (("trainer.reference=nowhere",), "trainer.reference=nowhere: is no published curve and no run's"),
        (("stages=[3]",), "stages=[3]: must be a list, of an entry with step or epoch"),
        (("stages=[{step: 2, optimizer.lr: -3}]",), "stage 1 (step 2): optimizer.lr=-3: must be greater"),
        (("trainer.dry_run=yes_please",), "trainer.dry_run=yes_please: must be true or false"),
        (("-m", "head.m=0.1,0.2"), "trainer.dry_run=true: leaves no run that a sweep could compare"),
    ],
)
def test_what_cannot_be_tried_is_one_line(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    ended = command("facerec-train", "trainer.dry_run=true", *overrides, cwd=tmp_path)
    assert message in failed(ended)
    assert "-m" in overrides or not list(tmp_path.iterdir())


def test_a_step_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facerec.training.dry_run.free_memory", lambda device: 1000)
    with pytest.raises(FacerecError, match=r"a step takes .* by the forecast, and 1 kB are free \(cpu\)"):
        dry_run(composed("lfw_small", *SMALL, "data.size=32"))
