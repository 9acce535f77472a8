"""A backbone learns from a teacher: the losses, files of any kind, and embeddings stored once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facerec.backbones import create_backbone
from facerec.cli import embed
from facerec.errors import ConfigError, MissingDataError
from facerec.heads import create_head
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import prepare
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.training import teacher as teachers
from facerec.training.settings import TeacherSettings
from facerec.training.teacher import Teacher, attention_distance, conversion, divergence
from tests.folder_run import train
from tests.folder_run import trained as trained
from tests.folder_run import work as work
from tests.tiny_run import TinyFaces, tiny_backbone

CPU = torch.device("cpu")
INPUT = Preprocessing(size=16)


def unit(rows_ND: Tensor) -> Tensor:
    return rows_ND / rows_ND.norm(dim=1, keepdim=True)


# The mathematics ------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_probabilities() -> None:
    own_BC, taught_BC = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    total = 0.0
    for own_C, taught_C in zip(own_BC.tolist(), taught_BC.tolist(), strict=True):
        q_C, p_C = ([math.exp(7 * x) for x in row] for row in (own_C, taught_C))
        for q, p in zip(q_C, p_C, strict=True):
            total += p / sum(p_C) * math.log((p / sum(p_C)) / (q / sum(q_C)))
    assert divergence(own_BC, taught_BC, 7.0).item() == pytest.approx(total / 3)
    assert divergence(taught_BC, taught_BC, 7.0).item() == pytest.approx(0, abs=1e-12)


def test_attention_maps_are_compared_whatever_their_channels_and_sizes() -> None:
    own_BCHW, taught_BCHW = torch.randn(2, 3, 4, 4), torch.randn(2, 7, 2, 2)
    own_BHW = own_BCHW.square().mean(1).reshape(2, 2, 2, 2, 2).mean((2, 4))
    expected = (unit(own_BHW.flatten(1)) - unit(taught_BCHW.square().mean(1).flatten(1))).square().sum(1)
    torch.testing.assert_close(attention_distance(own_BCHW, taught_BCHW), expected.mean())
    assert attention_distance(own_BCHW, 3 * own_BCHW).item() == pytest.approx(0, abs=1e-6)


def test_images_prepared_for_the_student_become_those_of_the_teacher() -> None:
    other = Preprocessing(mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0], channels="bgr", size=16)
    image_BHWC = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    converted = conversion(INPUT, other, "teacher.ckpt=x")(INPUT.normalise(image_BHWC))
    torch.testing.assert_close(converted, other.normalise(image_BHWC), atol=1e-5, rtol=1e-5)
    larger = conversion(INPUT, Preprocessing(size=32), "teacher.ckpt=x")(INPUT.normalise(image_BHWC))
    assert larger.shape == (2, 3, 32, 32)
    with pytest.raises(ConfigError, match="takes 32×16 images, which are no scaled 16×16"):
        conversion(INPUT, Preprocessing(size=[32, 16]), "teacher.ckpt=x")


# The teacher ----------------------------------------------------------------------------------------------


class Stored(Teacher):
    """A teacher without a file: the first numbers of an image."""

    def _network(self, path: str, input: Any, device: Any, precision: str) -> Any:
        return lambda image_BCHW, batch: image_BCHW.flatten(1)[:, :8].contiguous()


def taught(settings: TeacherSettings, head: Any, loader: Loader, kind: type[Teacher] = Stored) -> Teacher:
    backbone: Any = tiny_backbone(dropout=0.0)
    backbone.embedding_size = 8
    return kind(settings, backbone, head, loader, INPUT, CPU, "fp32")


def test_the_losses_are_added_by_their_weights() -> None:
    faces = TinyFaces()
    loader = Loader(faces, 7, DataSettings(size=16, mirror=False))
    head: Any = create_head("arcface", num_classes=5, embedding_size=8)
    settings = TeacherSettings(ckpt="x", cosine=2.0, logits=0.5, scale=8.0)
    teacher = taught(settings, head, loader)
    batch = next(loader.batches(0))
    image_BCHW, label_B = prepare(batch, CPU, INPUT)
    embedding_BD = torch.randn(7, 8, requires_grad=True)
    output = head(embedding_BD, label_B)
    sum_ = teacher.add(output, embedding_BD, image_BCHW, batch)

    target_BD = unit(image_BCHW.flatten(1)[:, :8])
    mean_CD = torch.zeros(5, 8)
    for one in Loader(faces, 7, DataSettings(size=16, mirror=False)).batches(0):
        mean_CD.index_add_(0, one.label_B, unit(prepare(one, CPU, INPUT)[0].flatten(1)[:, :8]))
    cosine = 1 - (unit(embedding_BD) * target_BD).sum(1).mean()
    own_BC = unit(embedding_BD) @ unit(head.weight).T
    logits = divergence(own_BC, target_BD @ unit(mean_CD).T, 8.0)
    torch.testing.assert_close(sum_.loss, output.loss + 2 * cosine + 0.5 * logits)
    assert sum_.statistics["teacher_cosine"].item() == pytest.approx(cosine.item(), abs=1e-6)
    assert sum_.statistics.keys() == output.statistics.keys() | {"teacher_cosine", "teacher_logits"}


@pytest.mark.parametrize(
    ("settings", "head", "said"),
    [
        ({"cosine": 1.0}, {"embedding_size": 4}, "teacher.cosine=1: compares embeddings of one size"),
        ({"logits": 1.0}, {"sample_rate": 0.5}, "teacher.logits=1: needs a head with one row per class"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    settings: dict[str, float], head: dict[str, Any], said: str
) -> None:
    loader = Loader(TinyFaces(), 7, DataSettings(size=16))
    made = create_head("arcface", **{"num_classes": 5, "embedding_size": 8, **head})
    backbone: Any = tiny_backbone()
    backbone.embedding_size = head.get("embedding_size", 8)
    with pytest.raises(ConfigError, match=said):
        Stored(TeacherSettings(ckpt="x", **settings), backbone, made, loader, INPUT, CPU, "fp32")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ckpt": "a", "embeddings": "b"}, "teacher.embeddings=b: leave it out"),
        ({"ckpt": "a", "cosine": 0.0}, "nothing is taught"),
        ({"ckpt": "a", "features": 1.0}, "needs teacher.ckpt and teacher.layers"),
        ({"cosine": -1.0}, "must be 0 or more"),
    ],
)
def test_settings_that_teach_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TeacherSettings(**given)


def test_layers_are_found_by_name_and_must_be_maps() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    into: dict[str, Tensor] = {}
    with pytest.raises(ConfigError, match=r"teacher\.layers=2: no such module of the backbone"):
        teachers._record(network, ["2"], into, "backbone")
    teachers._record(network, ["0"], into, "backbone", training=True)
    network.eval()(torch.zeros(1, 3, 8, 8))
    assert not into
    network.train()(torch.zeros(1, 3, 8, 8))
    assert into["0"].shape == (1, 2, 6, 6)
    teachers._record(network, ["1"], into, "backbone")
    with pytest.raises(ConfigError, match="no feature map"):
        network(torch.zeros(1, 3, 8, 8))


# Stored embeddings ----------------------------------------------------------------------------------------


def test_stored_embeddings_are_looked_up_by_name(tmp_path: Path) -> None:
    faces = TinyFaces()
    faces.name = lambda i: f"={i}.jpg" if i == 3 else f"{i}.jpg"  # type: ignore[method-assign]
    rows = [*range(29, -1, -1)]
    np.save(tmp_path / "e.npy", np.array([[row, 0] for row in rows], np.float32))
    names = ["name,label", *(f"'={i}.jpg,x" if i == 3 else f"{i}.jpg,x" for i in rows)]
    (tmp_path / "e.names.csv").write_text("\n".join(names) + "\n")
    look_up = teachers._stored(tmp_path / "e.npy", faces, CPU)
    batch: Any = type("Batch", (), {"index_B": np.array([3, 0, 29])})
    assert look_up(torch.zeros(0), batch)[:, 0].tolist() == [3, 0, 29]

    (tmp_path / "e.names.csv").write_text("\n".join([*names[:-1], "other.jpg,x"]) + "\n")
    with pytest.raises(ConfigError, match=r"has no row for 1 of 30 training images, such as 0\.jpg"):
        teachers._stored(tmp_path / "e.npy", faces, CPU)
    (tmp_path / "e.names.csv").unlink()
    with pytest.raises(MissingDataError, match=r"there is no .*e\.names\.csv"):
        teachers._stored(tmp_path / "e.npy", faces, CPU)


# The command ----------------------------------------------------------------------------------------------


def test_a_run_learns_from_a_file_and_from_its_stored_embeddings(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = work / "run/checkpoints/last.pt"
    layers = "teacher.layers={conv_3: conv_3}"
    run = train(
        work,
        *("output_dir=student", f"teacher.ckpt={last}", "teacher.logits=0.5", "teacher.features=10", layers),
        "trainer.max_steps=2",
    )
    assert run.returncode == 0, run.stderr
    rows = (work / "student/metrics.jsonl").read_text()
    assert all(f'"teacher_{name}"' in rows for name in ("cosine", "logits", "features"))
    more = train(
        work,
        *("output_dir=student", f"teacher.ckpt={last}", "teacher.logits=0.25", "teacher.features=10", layers),
        "trainer.max_steps=3",
    )
    assert more.returncode == 0, more.stderr
    assert "teacher.logits=0.25 (was 0.5)" in more.stdout + more.stderr

    assert embed.run([str(work / "faces"), str(work / "e.npy"), "--ckpt", str(last)]) == 0
    run = train(work, "output_dir=stored", "teacher.embeddings=e.npy", "trainer.max_steps=1")
    assert run.returncode == 0, run.stderr
    wrong = train(work, "output_dir=wrong", "teacher.ckpt=nothing.pt", "trainer.max_steps=1")
    assert wrong.returncode == 2 and "teacher.ckpt=nothing.pt: " in wrong.stderr
    assert "Traceback" not in wrong.stderr
    torch.save(create_backbone("mobilefacenet", embedding_size=8).state_dict(), work / "w.pth")
    wrong = train(work, "output_dir=wrong", "teacher.backbone=mbf", "teacher.ckpt=w.pth")
    assert "teacher.ckpt=w.pth: does not fit the backbone: " in wrong.stderr
    assert wrong.stderr.endswith("; it fits teacher.backbone=mobilefacenet\n")
