"""`facerec-train` over one, three and four processes: the same losses, and the same weights to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facerec.backbones import create_backbone
from facerec.cli import embed
from facerec.images.preprocessing import Preprocessing
from facerec.models.export import export
from facerec.models.model import Model
from tests.several import run_ranks, train

# Nothing here depends on which rank an image goes to, so that all world sizes must agree. Neither 3 nor 4
# divides 10 classes; the last of the global batches of 12 has 10 images, which they divide unevenly.
EXACT = [
    "backbone=mobilefacenet",
    "backbone.input_size=32",
    "backbone.freeze_batch_norm=true",
    "data=synthetic",
    "data.size=32",
    "data.identities=10",
    "data.images=46",
    "data.workers=1",
    "eval.targets=[]",
    "optimizer.lr=0.01",
    "schedule=constant",
    "trainer.check_replicas=true",
    "trainer.device=cpu",
    "trainer.log_every=1",
    "trainer.max_steps=6",
    "trainer.threads=1",
]
RUNS = {
    "sharded": ["backbone.embedding_size=512"],
    "replicated": ["backbone.embedding_size=512", "head.sharded=false"],
    "sampled": ["backbone.embedding_size=64", "head.sample_rate=0.5"],
    "accumulated": [
        *("backbone.embedding_size=64", "trainer.accumulate=2", "trainer.clip_norm=1", "head.sample_rate=0.5")
    ],
    "too_few_classes": ["backbone.embedding_size=64", "data.identities=5"],
    **{
        head: ["backbone.embedding_size=64", f"head={head}"]
        for head in ("adacos", "adaface", "center", "curricularface", "softmax", "sphereface2")
    },
}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_all(folder: Path, world: int, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of metrics.jsonl of each of these runs, by world size."""
    runs = {name: [*EXACT, f"trainer.batch_size={12 // world}", *RUNS[name]] for name in names}
    run_ranks(world, folder, train, runs)
    for name in names:
        for rank in range(world):
            said = (folder / f"{name}.{rank}.txt").read_text()
            assert said.splitlines()[-1] == "0", said
    return {name: rows(folder / name) for name in names}


@pytest.mark.parametrize(
    ("world", "names"),
    [
        (3, ["accumulated"]),
        pytest.param(3, list(RUNS), marks=pytest.mark.slow),
        pytest.param(4, list(RUNS), marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_one_process_and_all_ranks_hold_the_same_weights(
    tmp_path: Path, world: int, names: list[str]
) -> None:
    alone, several = run_all(tmp_path / "alone", 1, names), run_all(tmp_path, world, names)
    for name in names:
        assert_same_losses(alone[name], several[name], name)


def assert_same_losses(alone: list[dict[str, Any]], several: list[dict[str, Any]], name: str) -> None:
    assert [row["step"] for row in several] == [row["step"] for row in alone] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(alone, several, strict=True):
        for key in ("epoch", "loss", "grad_norm", "target_cosine"):
            assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), (name, key, one["step"])


def folder_of_faces(root: Path) -> None:
    """46 images of 10 identities, numbered noise."""
    noise = np.random.default_rng(0)
    for i in range(46):
        identity = root / f"{i % 10:02}"
        identity.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(identity / f"{i:02}.png")


def test_a_teacher_and_class_rows_from_means_give_the_losses_of_one_process(tmp_path: Path) -> None:
    settings = {"name": "mobilefacenet", "embedding_size": 64, "input_size": 32}
    torch.manual_seed(0)
    teacher = Model(create_backbone(**settings), Preprocessing(size=32), config={"backbone": settings})
    start, faces = tmp_path / "start.safetensors", tmp_path / "faces"
    export(teacher, start, "safetensors")
    folder_of_faces(faces)
    common = [*EXACT, "data=folder", "data.identities=null", "data.images=null", f"data.root={faces}"]
    common += ["backbone.embedding_size=64", f"backbone.pretrained={start}", "head.init=class_means"]
    stored = tmp_path / "e.npy"
    assert embed.run([str(faces), str(stored), "--ckpt", str(start)]) == 0
    runs = {
        "network": [f"teacher.ckpt={start}", "teacher.logits=0.5", "head.sharded=false"],
        "stored": [f"teacher.embeddings={stored}", "teacher.cosine=5"],
    }
    results = {}
    for world in (1, 2):
        given = {name: [*common, *own, f"trainer.batch_size={12 // world}"] for name, own in runs.items()}
        folder = tmp_path / f"{world}"
        run_ranks(world, folder := tmp_path / f"{world}", train, given)
        for name in runs:
            said = [(folder / f"{name}.{rank}.txt").read_text() for rank in range(world)]
            assert all(one.splitlines()[-1] == "0" for one in said), said
            results[world, name] = rows(folder / name)
    for name in runs:
        assert_same_losses(results[1, name], results[2, name], name)
        for one, other in zip(results[1, name], results[2, name], strict=True):
            keys = [key for key in one if key.startswith("teacher_")]
            assert keys and all(other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5) for key in keys)
    # Rows are the means of the embeddings they are compared with, so they are near from the first step on.
    assert results[1, "stored"][0]["target_cosine"] > results[1, "stored"][0]["other_cosine"]
