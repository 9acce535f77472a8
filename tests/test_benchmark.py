"""The benchmark runner: it finds its benchmarks, and its rows carry both comparisons."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_table", BENCHMARKS / "table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_benchmark_is_listed_with_its_first_line() -> None:
    ended = subprocess.run(
        [sys.executable, BENCHMARKS, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    for path in BENCHMARKS.glob("*.py"):
        if path.stem not in ("table", "__main__"):
            assert f"    {path.stem} " in ended.stdout
            assert "def rows(options" in path.read_text()


SMALLEST = {
    "data": ["--only", "set"],
    "eval": ["--only", "verification", "--pairs", "20", "--rounds", "1", "--backbone", "mobilefacenet"],
    "process": ["--batch", "2", "--steps", "1", "--rounds", "1"],
    "head": ["--classes", "1000", "--rounds", "1"],
    "scale": ["--classes", "1000", "--rounds", "1"],
    "step": ["--quick", "--steps", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_on_the_present_code(name: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, BENCHMARKS, name, "--json", tmp_path / "rows.json", *SMALLEST[name]],
        check=True,
        timeout=300,
    )
    assert json.loads((tmp_path / "rows.json").read_text())


def test_rows_are_printed_and_written_with_both_ratios(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [table.Row("decode", 9000.0, "img/s", 18000.0, 1757.0), table.Row("open", 2.0, "ms")]
    table.show(iter(made), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {
            "name": "decode",
            "value": 9000.0,
            "unit": "img/s",
            "floor": 18000.0,
            "reference": 1757.0,
            "ratio_to_floor": 0.5,
            "ratio_to_reference": 9000 / 1757,
        },
        {
            "name": "open",
            "value": 2.0,
            "unit": "ms",
            "floor": None,
            "reference": None,
            "ratio_to_floor": None,
            "ratio_to_reference": None,
        },
    ]
    decode, opened = capsys.readouterr().out.splitlines()[1:3]
    assert decode.split() == ["decode,", "img/s", "9,000", "18,000", "1,757", "0.5", "5.12"]
    assert opened.split() == ["open,", "ms", "2", "–", "–", "–", "–"]


def test_the_best_of_several_runs_counts(table: ModuleType) -> None:
    calls: list[str] = []
    seconds = table.best(lambda: calls.append("work"), 4, lambda: calls.append("before"))
    assert calls == ["before", "work"] * 4 and 0 <= seconds < 1


def test_the_gpu_check_rehearses_on_a_cpu(tmp_path: Path) -> None:
    check = BENCHMARKS.parent / "gpu_check"
    command = [sys.executable, check, "--device", "cpu", "--small", "--out", tmp_path / "check"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + (tmp_path / "check.md").read_text()
    found = json.loads((tmp_path / "check.json").read_text())
    assert [part["state"] for part in found["parts"]] == ["passed"] * len(found["parts"])
    page = (tmp_path / "check.md").read_text()
    for part in found["parts"]:
        assert all(f"| {row['name'].strip()}, {row['unit']}".rstrip(", ") in page for row in part["rows"])
    assert "arcface C=2000 bf16 keep, s" in page and f"torch: {found['machine']['torch']}" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_check_says_that_there_is_no_gpu() -> None:
    ended = subprocess.run([sys.executable, BENCHMARKS.parent / "gpu_check"], capture_output=True, text=True)
    assert ended.returncode == 2 and "torch sees no GPU here; --device cpu --small" in ended.stderr
