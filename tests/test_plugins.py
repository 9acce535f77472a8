"""Heads, backbones and the rest from outside: the plugin that docs/extend.md and extend-more.md show."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from facerec.models import checkpoint
from tests.test_cli_train import succeeded

DOCS = Path(__file__).parents[1] / "docs"
PAGES = "".join((DOCS / name).read_text() for name in ("extend.md", "extend-more.md"))
SETTINGS = [
    *("head=widening", "head.m=0.3", "backbone=plain", "backbone.embedding_size=16"),
    *("schedule=halving", "optimizer=rmsprop", "trainer.batch_size=16", "trainer.max_steps=2"),
    *("data=stripes", "data.options.per_identity=6", "data.size=32", "logger=[console,metrics,losses]"),
    *("trainer.log_every=1", "trainer.threads=1", "trainer.device=cpu", "output_dir=run"),
]


def write_plugin(folder: Path) -> None:
    """Write the files of the pages where their first lines say."""
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGES, re.DOTALL)
    assert blocks
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages into which pip has installed the plugin."""
    work = tmp_path_factory.mktemp("plugin")
    write_plugin(work)
    wheel, info = work / "my_faces-1.0-py3-none-any.whl", "my_faces-1.0.dist-info"
    entry = re.search(r"```toml\n(.*?)```", PAGES, re.DOTALL)
    assert entry and entry[1].startswith('[project.entry-points."facerec.plugins"]')
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted((work / "my_faces").rglob("*.*")):
            archive.write(path, path.relative_to(work))
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my-faces\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "[facerec.plugins]\nmy_faces = my_faces\n")
        archive.writestr(f"{info}/RECORD", "")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--target", str(work / "site"), str(wheel)], check=True)
    return work / "site"


def run(
    program: str, folder: Path, *arguments: str, packages: Path | None = None
) -> subprocess.CompletedProcess[str]:
    code = f"from facerec.cli.{program} import main; main()"
    path = os.pathsep.join(filter(None, [str(packages or ""), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Path:
    """The folder of a training with the installed plugin."""
    folder = tmp_path_factory.mktemp("trained")
    succeeded(run("train", folder, *SETTINGS, packages=site))
    return folder / "run"


def test_an_installed_plugin_is_there_without_a_word(tmp_path: Path, finished: Path, site: Path) -> None:
    log = (finished / "train.log").read_text()
    assert re.search(r"head +widening", log) and re.search(r"backbone +plain", log) and "RMSprop" in log
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [1e-3, 1e-3 * 0.5**2]
    assert rows[-1]["loss"] > 0 and "accuracy" in rows[-1]
    assert "6 widths of stripes, 36 images" in log
    lines = (finished / "losses.csv").read_text().splitlines()
    assert lines == [f"{row['step']},{round(row['loss'], 4)}" for row in rows]
    last = finished / "checkpoints" / "last.pt"
    assert isinstance(checkpoint.load(last)["backbone"]["layers.0.weight"], torch.Tensor)
    without = run("export", tmp_path, f"ckpt={last}", "format=safetensors", "out=x.safetensors")
    assert without.returncode == 2 and without.stderr.count("\n") == 1
    assert "its backbone plain is none of" in without.stderr
    assert without.stderr.endswith("if a plugin brings it, name it: plugins=[MODULE]\n")
    done = succeeded(
        run("export", tmp_path, f"ckpt={last}", "format=safetensors", "out=x.safetensors", packages=site)
    )
    assert done.stdout.splitlines()[-1].startswith("x.safetensors ")


def test_an_installed_plugin_judges(tmp_path: Path, finished: Path, site: Path) -> None:
    ckpt = f"ckpt={finished}/checkpoints/last.pt"
    succeeded(run("evaluate", tmp_path, ckpt, "eval=stripes", "output_dir=judged", packages=site))
    results = json.loads((tmp_path / "judged" / "results.json").read_text())["targets"]["stripes"]
    assert results["pairs"] == 20 and math.isfinite(results["d_prime"]) and "eer" not in results
    assert "d′" in (tmp_path / "judged" / "report.html").read_text()


def test_the_head_of_an_installed_plugin_is_drawn(tmp_path: Path, site: Path) -> None:
    done = succeeded(run("figures", tmp_path, "logits", "--formats", "svg", packages=site))
    assert "widening" in (tmp_path / "figures" / "heads_logits.svg").read_text()
    assert "not drawn: head=triplet" in done.stderr


def test_a_projects_folder_is_a_plugin_by_its_name(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    succeeded(run("train", tmp_path, *SETTINGS, "plugins=[my_faces]"))
    again = run("train", tmp_path, *SETTINGS, "plugins=my_faces", "trainer.max_steps=3")
    assert again.returncode == 0 and "resumed from" in again.stdout, again.stderr
    unknown = run("train", tmp_path, *SETTINGS)
    assert unknown.returncode == 2 and ": no such " in unknown.stderr  # which first, Hydra decides
    assert "if a plugin brings it, name it: plugins=[MODULE]" in unknown.stderr
    ckpt = "ckpt=run/checkpoints/last.pt"
    evaluated = run("evaluate", tmp_path, ckpt, "output_dir=judged")
    assert evaluated.returncode == 2 and evaluated.stderr.count("\n") == 1
    assert evaluated.stderr.endswith("if a plugin brings it, name it: plugins=[my_faces]\n")


def test_settings_of_a_plugin_are_checked_like_all_others(tmp_path: Path, site: Path) -> None:
    wrong = run("train", tmp_path, *SETTINGS, "head.m=wide", packages=site)
    assert wrong.returncode == 2 and "head.m=wide: must be a number" in wrong.stderr
    wrong = run("train", tmp_path, *SETTINGS, "schedule.gamma=1", packages=site)
    assert wrong.returncode == 2 and "schedule.gamma: no such setting" in wrong.stderr


def test_a_plugin_that_is_not_there_or_fails_is_named(tmp_path: Path) -> None:
    missing = run("train", tmp_path, "plugins=[nowhere.at_all]")
    assert missing.returncode == 2
    assert "plugins=nowhere.at_all: no such module" in missing.stderr
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    broken = run("train", tmp_path, "plugins=[broken]", "head=arcface", "data=synthetic")
    assert broken.returncode == 2
    assert "plugins=broken: cannot be imported: ModuleNotFoundError" in broken.stderr


def test_an_exception_of_a_plugins_own_code_names_the_plugin_behind_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "from facerec.heads import HEADS, Head\n\n\n"
        '@HEADS.register("failing")\nclass Failing(Head):\n'
        "    def forward(self, embedding_BD, label_B, sizes=None):\n"
        "        return embedding_BD.nothing\n"
    )
    (tmp_path / "configs" / "head").mkdir(parents=True)
    (tmp_path / "configs" / "head" / "failing.yaml").write_text("name: failing\n")
    data = ["data=synthetic", "data.size=32", "data.images=16", "data.identities=4", "trainer.batch_size=8"]
    done = run("train", tmp_path, "plugins=[failing]", "head=failing", *data, "trainer.device=cpu")
    assert done.returncode == 1
    *_, error, note = done.stderr.splitlines()
    assert error.startswith("AttributeError")
    assert note == f"This comes from the plugin failing ({tmp_path}/failing.py:7), not from facerec itself."


def test_a_file_names_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / "web.yaml").write_text("# @package _global_\nplugins: [evil]\n")
    search = f"hydra.searchpath=[file://{tmp_path}/configs]"
    done = run("train", tmp_path, search, "experiment=web", "data=synthetic")
    assert done.returncode == 2
    assert "plugins=evil: comes from a file, which may name no code to be run" in done.stderr
    assert not (tmp_path / "runs").exists()
