"""trainer.profile: the phases of a step add up to the step, and what it costs is not left behind."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from facerec.reporting.loggers.profile import PHASES, SKIPPED, TIMED, TRACED, Profile
from tests.test_records import logger
from tests.tiny_run import tiny_trainer


def test_the_phases_of_a_step_are_measured_and_a_few_steps_traced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    steps = SKIPPED + TIMED + TRACED + 2
    trainer = tiny_trainer(
        tmp_path, trainer_max_steps=steps, trainer_epochs=99, reporters=[logger(Profile, tmp_path)]
    )
    trainer.fit()
    written = json.loads((tmp_path / "profile" / "profile.json").read_text())
    seconds = written["seconds"]
    assert set(seconds) == {*PHASES, "all"}
    assert all(seconds[phase] > 0 for phase in PHASES)
    assert sum(seconds[phase] for phase in PHASES) == pytest.approx(seconds["all"])
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::convolution" in names
    assert sum(event.get("name") == "aten::convolution" for event in trace["traceEvents"]) == TRACED
    assert "profile of a step" in caplog.text
    for hooked in (
        trainer.embed._forward_hooks,
        trainer.embed._forward_pre_hooks,
        trainer.head._forward_hooks,
    ):
        assert not hooked


def test_a_run_that_is_too_short_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer(tmp_path, trainer_max_steps=2, reporters=[logger(Profile, tmp_path)])
    trainer.fit()
    assert f"the run ended after 2 steps; {SKIPPED + TIMED} are needed" in caplog.text
