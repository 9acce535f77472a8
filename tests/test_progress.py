"""Signs of life: bars where somebody watches, lines elsewhere, and what a command says when it ends."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facerec import progress
from facerec.reporting.run_folder import written_line
from facerec.training.settings import TrainerSettings
from tests.tiny_run import TinyFaces


def test_where_no_bar_is_shown_a_line_says_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO), progress.Bar(total=1200, desc="lfw", unit="images") as bar:
        for _ in range(6):
            bar.update(200)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["lfw: 400 of 1,200 images", "lfw: 800 of 1,200 images", "lfw: 1,200 of 1,200 images"]
    progress.say("loading …")
    assert capsys.readouterr() == ("", ""), "no bar and no word where nobody watches"


def test_a_notebook_is_somebody_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress.shows_bars()
    monkeypatch.setitem(progress.sys.modules, "ipykernel", progress)
    assert progress.shows_bars()


@pytest.mark.parametrize("epochs", [0.3, 0.5, 1.0, 2.0, 2.7])
@pytest.mark.parametrize("batch", [4, 7])
@pytest.mark.parametrize(("accumulate", "most"), [(1, None), (2, None), (1, 3)])
def test_the_number_of_steps_is_known_before_the_first(
    tmp_path: Path, epochs: float, batch: int, accumulate: int, most: int | None
) -> None:
    from tests.tiny_run import tiny_trainer

    given: dict[str, Any] = {"trainer_epochs": epochs, "trainer_batch_size": batch}
    run = tiny_trainer(tmp_path, trainer_accumulate=accumulate, trainer_max_steps=most, **given)
    assert isinstance(run.settings, TrainerSettings) and isinstance(run.loader.faces, TinyFaces)
    said = run.steps()
    run.step = lambda batches: take(run, batches)  # type: ignore[method-assign]
    run.after_step = lambda: None  # type: ignore[method-assign]
    run.save = lambda: None  # type: ignore[method-assign]
    run.fit()
    assert said == run.position.step


def take(run: Any, batches: Any) -> None:
    """A step without its arithmetic."""
    run.position.step += 1
    run.position.sample = batches[-1].position


def test_all_that_was_written_is_one_line() -> None:
    paths = [Path("out") / name for name in ("report.html", "results.json", "lfw_roc.png", "lfw_pairs.png")]
    assert written_line(paths) == "wrote      out/report.html, and beside it results.json, 2 figures"
    assert written_line(paths[:1]) == "wrote      out/report.html"
