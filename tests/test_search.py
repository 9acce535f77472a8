"""Searches by Optuna: the runs it chooses, and those that it ends early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.utils import JobReturn, JobStatus

from facerec.errors import Pruned
from facerec.reporting.history import History
from facerec.reporting.search import JOURNAL, PRUNED, STUDY, _tell, storage_of
from tests.test_cli_train import command, done, failed
from tests.test_sweeps import SWEEP
from tests.test_sweeps import folder as folder  # a fixture
from tests.tiny_run import made_set, tiny_trainer


def test_optuna_chooses_the_runs_and_the_same_command_goes_on_with_the_search(folder: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    space = ["head.m=interval(0.2,0.5)", "optimizer.lr=tag(log,interval(0.001,0.1))", "head=arcface,cosface"]
    settings = [*SWEEP, *space, "hydra/sweeper=optuna", "hydra.sweeper.startup_trials=1"]
    first = done("facerec-train", *settings, "hydra.sweeper.n_trials=2", cwd=folder)
    assert "best run" in first.stdout and "2 runs, 0 pruned, 0 failed" in first.stdout
    done("facerec-train", *settings, "hydra.sweeper.n_trials=3", cwd=folder)
    study = optuna.load_study(study_name=STUDY, storage=storage_of(folder / "out"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    for trial in study.trials:
        given = (folder / "out" / str(trial.number) / ".hydra" / "overrides.yaml").read_text()
        results = json.loads((folder / "out" / str(trial.number) / "results.json").read_text())
        assert f"head.m={trial.params['head.m']:.6g}" in given and 0.2 <= trial.params["head.m"] <= 0.5
        assert f"head={trial.params['head']}" in given and 0.001 <= trial.params["optimizer.lr"] <= 0.1
        of_set = results["targets"]["tiny"]
        assert trial.value == of_set[of_set["judged_by"]], "the number that chooses best.pt"
    nothing = command("facerec-train", *SWEEP, "hydra/sweeper=optuna", cwd=folder)
    assert "hydra/sweeper=optuna: nothing varies" in failed(nothing)


def test_a_run_that_others_outdo_at_the_same_step_is_ended_and_recorded_as_pruned(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    from facerec.reporting.pruning import Pruning

    study = optuna.create_study(study_name=STUDY, storage=storage_of(tmp_path), direction="maximize")
    for _ in range(3):
        good = study.ask()
        good.report(1.1, 5)  # no accuracy reaches that
        study.tell(good, 1.1)
    poor = study.ask()
    pruning = Pruning(tmp_path, poor.number, {"prune": True, "startup_trials": 2})
    trainer = tiny_trainer(tmp_path, eval_bootstrap=0, reporters=[History(tmp_path), pruning])
    trainer.verification_sets = [made_set()]
    with pytest.raises(Pruned):
        trainer.fit()
    last = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])
    assert (last["why"], last["step"]) == ("pruned", 5) and (tmp_path / JOURNAL).is_file()
    for number, outcome in ((poor.number, PRUNED), (study.ask().number, None), (study.ask().number, 0.5)):
        ended: Any = JobReturn(status=JobStatus.COMPLETED, _return_value=outcome)
        _tell(study, number, ended)
    assert [trial.state.name for trial in study.trials[3:]] == ["PRUNED", "FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_search_on_faces_ends_the_runs_below_the_median_of_those_before(
    lfw_root: Path, tmp_path: Path
) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    settings = [
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.startup_trials=2"),
        *(
            "optimizer.lr=tag(log,interval(0.0001,0.3))",
            "head.m=interval(0,0.5)",
            "head.s=32",
            "schedule=constant",
        ),
        *("data=lfw", f"data.root={lfw_root}", "data.size=32", "data.workers=1", "backbone=mobilefacenet"),
        *(
            "backbone.embedding_size=32",
            "backbone.input_size=32",
            "trainer.batch_size=32",
            "trainer.threads=1",
        ),
        *("trainer.max_steps=12", "eval.every_steps=4", "eval.bootstrap=0", "eval.figures=false"),
        *("logger=[console,metrics,results]", f"output_dir={tmp_path / 'out'}"),
    ]
    ended = done("facerec-train", *settings, cwd=tmp_path)
    trials = optuna.load_study(study_name=STUDY, storage=storage_of(tmp_path / "out")).trials
    finished: list[Any] = []
    for trial in trials:
        values = trial.intermediate_values  # by step
        below = [
            len(finished) >= 2 and max(v for s, v in values.items() if s <= step) < median(finished, step)
            for step in values
            if step < 12  # at the end of a run nothing is saved by that
        ]
        assert below == [False] * (len(below) - 1) + [trial.state.name == "PRUNED"]
        if trial.state.name == "COMPLETE":
            finished.append(trial)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned and len(finished) >= 2 and len(pruned) + len(finished) == 6
    assert f"6 runs, {len(pruned)} pruned, 0 failed" in ended.stdout
    for trial in pruned:
        last = json.loads(
            (tmp_path / "out" / str(trial.number) / "history.jsonl").read_text().splitlines()[-1]
        )
        assert (last["why"], last["step"]) == ("pruned", max(trial.intermediate_values)) and last["step"] < 12


def median(trials: list[Any], step: int) -> float:
    return float(np.median([trial.intermediate_values[step] for trial in trials]))
