"""The head that CONTRIBUTING.md shows works as it stands there: one module, one YAML file, nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()

# Train in a process whose heads and configs also lie in the folder of this test.
RUN = """
import sys
import facerec.heads
facerec.heads.__path__.append(sys.argv.pop(1))
from facerec.cli.train import main
main()
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The two files of the section on heads, written where their first lines say."""
    section = TEXT.split("## Adding a head")[1].split("\n## ")[0]
    for block in re.findall(r"```\w+\n# (\S+)\n(.*?)```", section, re.DOTALL):
        path = tmp_path / block[0]
        path.parent.mkdir(parents=True)
        path.write_text(block[1])
    return tmp_path


def test_it_is_one_module_of_ten_lines_and_one_yaml(example: Path) -> None:
    files = sorted(str(path.relative_to(example)) for path in example.rglob("*.*"))
    assert files == ["configs/head/widening.yaml", "facerec/heads/widening.py"]
    code = (example / files[1]).read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 12


def test_the_trainer_trains_with_it(example: Path) -> None:
    settings = (
        f"hydra.searchpath=[file://{example}/configs] head=widening head.m=0.3 data=synthetic "
        "data.identities=6 data.images=48 data.size=32 backbone=mobilefacenet "
        "backbone.input_size=32 backbone.embedding_size=16 trainer.batch_size=16 trainer.max_steps=2 "
        "trainer.log_every=1 trainer.threads=1 trainer.device=cpu eval.targets=[] eval.root=. output_dir=run"
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(example / "facerec" / "heads"), *settings.split()],
        cwd=example,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "widening" in (example / "run" / "train.log").read_text()
    steps = [json.loads(line) for line in (example / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] > 0
    assert any("accuracy" in key for key in steps[-1])


def test_its_settings_are_checked_like_all_others(example: Path) -> None:
    arguments = ["head=widening", f"hydra.searchpath=[file://{example}/configs]", "head.m=wide"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(example / "facerec" / "heads"), *arguments],
        cwd=example,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "head.m=wide: must be a number" in done.stderr
