"""A run over folders of faces that has ended in the middle of an epoch, for tests to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facerec.making.orl import pack_orl

# Settings of a network and a run that take a moment.
NETWORK = [
    *("backbone=mobilefacenet", "backbone.embedding_size=32", "data.size=32", "schedule=constant"),
    *("trainer.log_every=1", "trainer.threads=1"),
]
TINY = [
    *(*NETWORK, "data=folder", "data.root=faces", "data.workers=1", "trainer.batch_size=8"),
    *("trainer.device=cpu", "eval.targets=[]", "optimizer.lr=0.05"),
]


@pytest.fixture(scope="session")
def orl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of the ORL faces."""
    root = tmp_path_factory.mktemp("orl")
    pack_orl(root)
    return root


def make_faces(root: Path, names: tuple[str, ...] = ("anna", "berta", "clara"), images: int = 8) -> None:
    """A folder for each identity, of small random images."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(images):
            pixels = np.random.default_rng([number, i]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder of faces, and of a run that has ended after two of the three steps of an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    make_faces(folder / "faces")
    run = train(folder, "output_dir=run", "trainer.max_steps=2")
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to work in."""
    return Path(shutil.copytree(trained, tmp_path / "work"))


def train(cwd: Path, *settings: str) -> Any:
    from tests.test_cli_train import command  # not before pytest rewrites its assertions

    many = ["-m"] if "-m" in settings else []
    return command("facerec-train", *many, *TINY, *(s for s in settings if s != "-m"), cwd=cwd)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
