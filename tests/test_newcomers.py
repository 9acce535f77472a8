"""A head or backbone that no test knows fails none: tests ask the registry, and the newcomer its offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_plugins import write_plugin

ROOT = Path(__file__).parents[1]
MODULES = {
    "widening": ["config", "exact", "limits", "robust", "state"],
    "plain": ["backbones", "published_backbones", "recomputation", "parameter_groups"],
}


@pytest.mark.parametrize("name", MODULES)
def test_the_tests_of_all_heads_and_backbones_pass_with_a_newcomer(name: str, tmp_path: Path) -> None:
    write_plugin(tmp_path)
    info = tmp_path / "my_faces-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-faces\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[facerec.plugins]\nmy_faces = my_faces\n")
    prefix = "test_heads_" if name == "widening" else "test_"
    modules = [f"tests/{prefix}{module}.py" for module in MODULES[name]]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            f"{name} or every_published or every_file",
            *modules,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"[{name}" in done.stdout, "it was not among the heads and backbones"
