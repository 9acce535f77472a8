"""``--explain`` and the pages about the settings, which are made of the same comments and types."""

from __future__ import annotations

from pathlib import Path

import pytest

from facerec.cli.mistakes import choices_of
from facerec.cli.settings_text import file_settings, settings_of, title
from scripts.settings_pages import pages
from tests.test_cli_train import command, done, failed

DOCS = Path(__file__).parents[1] / "docs"


def test_the_pages_about_the_settings_are_current() -> None:
    for name, text in pages().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"{name}: run scripts/settings_pages"
        assert len(text.splitlines()) <= 200


@pytest.mark.parametrize("group", ["head", "backbone", "data", "optimizer", "schedule", "trainer", "eval"])
def test_every_choice_and_every_setting_says_what_it_means(group: str) -> None:
    for choice in choices_of(group):
        assert title(group, choice), choice
        silent = [one.key for one in settings_of(group, choice) if not one.meaning]
        assert not silent, f"{group}={choice}: {silent} have no comment in configs/{group}/"


def test_a_comment_behind_a_key_or_above_it_is_its_meaning() -> None:
    text = "# A head.\ndefaults: [base]\n"
    text += "a: 1  # one\n# two\n# lines\nb: null\nc:\n  d: 'x#y'  # inner\ne: {f: 1}\n"
    found = {one.key: (one.default, one.meaning) for one in file_settings(text, {})}
    assert found == {
        "a": ("1", "one"),
        "b": ("null", "two lines"),
        "c.d": ("'x#y'", "inner"),
        "e": ("{f: 1}", ""),
    }


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["--explain"], ["head=arcface                 Additive angular margin", "  seed=0  "]),
        (
            ["head=cosface", "--explain", "head"],
            ["head=cosface: Additive cosine", "  head.m=0.35", "  arcface  "],
        ),
        (["--explain", "head=cosface"], ["head=cosface: Additive cosine", "  head.m=0.35"]),
        (
            ["--explain", "head.m"],
            ["head.m=0.5", "  meaning  radians", "  values   a number, an angular margin"],
        ),
        (["experiment=orl_demo", "--explain", "head.m"], ["head.m=0.3", "  default  0.5 (changed here)"]),
        (
            ["experiment=orl_demo", "--explain", "trainer"],
            ["  trainer.epochs=10", "  trainer.max_steps=null"],
        ),
        (["--explain", "lr"], ["optimizer.lr=0.1", "  resume   applied"]),
        (["--explain", "margin"], ["head.m=0.5"]),
        (["--explain", "experiment"], ["  adaface_ms1mv2_ir50  ", "--explain experiment=NAME"]),
        (["--explain", "scale"], ["teacher.scale=16.0", "head.s=64.0"]),
        (["--explain", "augment"], ["data.augment.crop=0.0", "data.augment.cutout_side=0.5"]),
        (["--explain", "pfc"], ["head.sample_rate=1.0"]),
        (["--explain", "noise"], ["data.label_noise=0.0", "data.noise_kind=uniform"]),  # a part of the name
        (["--explain", "rgb"], ["input.channels=rgb"]),  # a word of the meaning
        (["--explain", "logger"], ["logger=[console,metrics,tensorboard,results,report]", "  wandb "]),
        (["--explain", "wandb"], ["logger=[console,metrics,tensorboard,results,report]"]),
        (["--explain", "blur"], ["data.augment.blur=0.0", "  values   a number"]),
    ],
)
def test_explain_says_meaning_range_default_and_what_an_experiment_changes(
    tmp_path: Path, arguments: list[str], lines: list[str]
) -> None:
    run = done("facerec-train", *arguments, cwd=tmp_path)
    printed = run.stdout.splitlines()
    for line in lines:
        assert any(one.startswith(line) for one in printed), run.stdout
    assert all(line == line.rstrip() and len(line) < 400 for line in printed), run.stdout
    assert not list(tmp_path.iterdir())


def test_explain_takes_the_settings_of_the_other_commands_and_refuses_what_there_is_not(
    tmp_path: Path,
) -> None:
    run = command("facerec-eval", "eval=ytf", "--explain", "eval.frames", cwd=tmp_path)
    assert run.stdout.startswith("eval.frames=null\n  meaning  frames per video")
    assert "no such group or setting" in failed(
        command("facerec-train", "--explain", "nonsense", cwd=tmp_path)
    )
    assert "head=arcfase" in failed(command("facerec-train", "head=arcfase", "--explain", cwd=tmp_path))
