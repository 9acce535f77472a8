"""Sweeps: repeated, with failures, and side by side in processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from facerec.packs.verification import write_verification
from facerec.reporting.record import finished_before
from tests.foreign_files import png
from tests.test_cli_train import Ended, command, done, failed, process, succeeded
from tests.test_records import RUN

SWEEP = ["-m", *RUN, "eval.targets=[tiny]", "eval.figures=false", "eval.bootstrap=0", "eval.folds=2"]
SWEEP += ["trainer.max_steps=2", "logger=[console,metrics,results]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small verification set."""
    generator = np.random.default_rng(0)
    images = [png(generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)) for _ in range(16)]
    (tmp_path / "data").mkdir()  # where data=synthetic has its sets
    write_verification(tmp_path / "data" / "tiny.bin", images, [True, False] * 4)
    return tmp_path


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("*/*.jsonl")}


def states(folder: Path) -> dict[str, str]:
    """How each run of a sweep has ended, by its folder."""
    found = {}
    for path in sorted(folder.glob("*/history.jsonl")):
        found[path.parent.name] = json.loads(path.read_text().splitlines()[-1]).get("why", "")
    return found


def test_a_repeated_sweep_skips_what_is_done_with_the_same_settings(folder: Path) -> None:
    sweep = [*SWEEP, "eval.select=eer"]
    done("facerec-train", *sweep, "seed=1,2", cwd=folder)
    run = folder / "out" / "0"
    eer = json.loads((run / "results.json").read_text())["targets"]["tiny"]["eer"]
    assert finished_before(OmegaConf.load(run / ".hydra" / "config.yaml"), run) == -eer, "as the run itself"
    before = files(folder / "out")
    again = command("facerec-train", *sweep, "seed=1,2", cwd=folder)
    assert again.returncode == 0 and again.stdout.count("has finished already with these settings") == 2
    assert files(folder / "out") == before and "| 1 " not in again.stdout.partition("| run")[0]
    longer = command("facerec-train", *sweep, "seed=1,2", "trainer.max_steps=3", cwd=folder)
    assert longer.returncode == 0 and "resumed from" in longer.stdout
    assert "has finished already" not in longer.stdout
    assert "± " in longer.stdout and "| 0,1 " in longer.stdout, "two seeds are one row"


def test_a_run_that_fails_does_not_stop_the_others_side_by_side(folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra parallel is not installed")
    settings = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "head.m=0.3,-1,0.4"]
    run = process("facerec-train", *SWEEP, *settings, cwd=folder)
    said = failed(Ended(run.returncode, run.stdout, run.stderr.strip().splitlines()[-1]))
    assert "head.m=-1" in said
    assert states(folder / "out") == {"0": "finished", "2": "finished"}
    assert "| 1 " in run.stdout and (folder / "out" / "sweep.html").is_file()


def test_runs_of_submitit_on_this_machine_are_one_table(folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra cluster is not installed")
    settings = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9", "head.m=0.3,0.4"]
    run = succeeded(process("facerec-train", *SWEEP, *settings, cwd=folder))
    assert states(folder / "out") == {"0": "finished", "1": "finished"}
    assert "| head.m " in run.stdout
