"""Fine-tune on new identities: what is frozen, slowed down, estimated anew, and where class rows start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from facerec.backbones import create_backbone
from facerec.errors import ConfigError
from facerec.heads import create_head
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import Batch
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.models import checkpoint
from facerec.training import fine_tuning
from facerec.training.optimizers import OptimizerSettings, matches, parameter_groups
from facerec.training.settings import StartSettings
from tests.folder_run import make_faces, train
from tests.folder_run import trained as trained
from tests.folder_run import work as work
from tests.tiny_run import TinyFaces, tiny_backbone

CPU = torch.device("cpu")
INPUT = Preprocessing(size=16)


def loader(each: int = 6, batch_size: int = 7) -> Loader:
    return Loader(TinyFaces(each=each), batch_size, DataSettings(size=16, mirror=False))


def images_of(faces: TinyFaces) -> torch.Tensor:
    pixels_NHWC = np.empty((len(faces), 16, 16, 3), np.uint8)
    for i in range(len(faces)):
        faces.decode_into(i, pixels_NHWC[i])
    return INPUT.normalise(torch.from_numpy(pixels_NHWC))


# Patterns -------------------------------------------------------------------------------------------------


def test_a_pattern_names_a_parameter_or_all_in_a_module() -> None:
    assert matches("body.3.conv.weight", ["body.3"]) and matches("body.3.conv.weight", ["body.[0-3].*"])
    assert matches("fc.bias", ["*.bias"])
    assert not matches("body.31.conv.weight", ["body.3"]) and not matches("fc.bias", [])


def test_rates_by_layer_multiply_that_of_the_backbone_and_the_last_match_counts() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    start = StartSettings(lr_scale=0.5, lr_scales={"[01]": 0.1, "1.weight": 0.2})
    modules = {"backbone": network, "head": nn.Linear(2, 2)}
    groups = parameter_groups(OptimizerSettings(weight_decay=0.0), modules, start.factors())
    scale_of = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale_of["backbone.0.weight"] == scale_of["backbone.0.bias"] == pytest.approx(0.05)
    assert scale_of["backbone.1.weight"] == pytest.approx(0.1)
    assert scale_of["backbone.2.weight"] == 0.5 and scale_of["head.weight"] == 1.0
    assert sum(len(group["params"]) for group in groups) == 8


def test_frozen_layers_keep_their_weights_and_running_statistics() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    start = StartSettings(freeze=["[01]"])
    assert fine_tuning.set_trained(network, start, frozenset(name for name, _ in network.named_parameters()))
    fine_tuning.set_mode(network, start)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(8, 4)).square().sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {"2.weight", "2.bias", "3.weight", "3.bias"}
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}


@pytest.mark.parametrize(
    ("start", "init", "said"),
    [
        (StartSettings(freeze=["stem"]), 0.01, "backbone.freeze=stem: matches no parameter"),
        (StartSettings(lr_scales={"stem": 0.1}), 0.01, "backbone.lr_scales=stem: matches no parameter"),
        (StartSettings(), "class_means", "head.init=class_means: needs backbone.pretrained"),
    ],
)
def test_what_cannot_be_done_is_refused(start: StartSettings, init: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fine_tuning.check(create_backbone("mobilefacenet", embedding_size=8, input_size=32), start, init)


def test_batch_norm_cannot_be_estimated_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="has no batch norm"):
        fine_tuning.check(nn.Linear(2, 2), StartSettings(estimate_batch_norm=3), 0.01)


# Statistics and class rows --------------------------------------------------------------------------------


def test_batch_norm_is_estimated_as_the_plain_mean_over_batches() -> None:
    network, source = tiny_backbone(dropout=0.0), loader()
    fine_tuning.estimate_batch_norm(network, source, INPUT, CPU, batches=3)
    means, variances = [], []
    batches = source.batches(0)
    for _ in range(3):
        image_BCHW = INPUT.normalise(next(batches).image_BHWC)
        feature_BCHW = network[0](image_BCHW).detach()  # type: ignore[index]
        means.append(feature_BCHW.mean((0, 2, 3)))
        variances.append(feature_BCHW.transpose(0, 1).flatten(1).var(1))
    batches.close()  # type: ignore[attr-defined]
    norm: Any = network[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))


@pytest.mark.parametrize("each", [2, 6])  # two images of an identity are enough
def test_class_rows_start_from_the_mean_unit_embeddings(each: int) -> None:
    faces, network = TinyFaces(each=each), tiny_backbone().eval()
    head = create_head("arcface", num_classes=5, embedding_size=8, init="class_means")
    start = StartSettings(pretrained="x")
    fine_tuning.prepare_start(start, network, head, loader(each, batch_size=5), INPUT, CPU)
    with torch.no_grad():
        embedding_ND = network(images_of(faces))
    unit_ND = embedding_ND / embedding_ND.norm(dim=1, keepdim=True)
    for identity in range(5):
        mean_D = unit_ND[faces.label_N == identity].mean(0)
        weight: Any = head.weight
        torch.testing.assert_close(weight[identity].detach(), mean_D / mean_D.norm())


def test_the_first_sub_centre_starts_from_the_mean_and_unseen_classes_as_drawn() -> None:
    head = create_head("subcenter", num_classes=3, embedding_size=4, k=2, init="class_means")
    weight: Any = head.weight
    before = weight.detach().clone()
    mean_CD = torch.eye(4)[:3].clone()
    mean_CD[1] = 0
    fine_tuning.start_from(head, mean_CD)
    assert torch.equal(weight[[0, 2], 0], mean_CD[[0, 2]])
    assert torch.equal(weight[:, 1], before[:, 1]) and torch.equal(weight[1], before[1])


def test_means_are_taken_without_augmentation() -> None:
    seen: list[Batch] = []

    def embed(image_BCHW: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return image_BCHW.flatten(1)

    mean_CD = fine_tuning.class_means(embed, loader(), INPUT, CPU)
    assert len(mean_CD) == 5 and all(batch.augment is None for batch in seen)


# The command ----------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_a_model_over_two_images_of_new_identities(work: Path) -> None:
    make_faces(work / "new", ("dora", "emil", "fritz", "greta"), images=2)
    run = train(
        work,
        *("data.root=new", "output_dir=tuned", "backbone.pretrained=run/checkpoints/last.pt"),
        *("head.init=class_means", "backbone.estimate_batch_norm=1", "backbone.freeze_batch_norm=true"),
        *("backbone.freeze=[conv1]", "backbone.lr_scales={linear: 0.5}", "trainer.max_steps=2"),
    )
    assert run.returncode == 0, run.stderr
    assert "4 class rows start from the means" in run.stdout + run.stderr
    assert "lr × 0.5" in run.stdout + run.stderr
    before = checkpoint.load(work / "run/checkpoints/last.pt")["backbone"]
    after = checkpoint.load(work / "tuned/checkpoints/last.pt")["backbone"]
    kept = {name for name in before if torch.equal(before[name], after[name])}
    weights = {n for n in before if n.startswith("conv1.") and "running" not in n and "tracked" not in n}
    assert weights and weights <= kept
    assert not any(name.endswith("running_mean") for name in kept)

    thawed = train(
        work,
        *("data.root=new", "output_dir=tuned", "backbone.pretrained=run/checkpoints/last.pt"),
        *("head.init=class_means", "backbone.estimate_batch_norm=1", "backbone.freeze_batch_norm=true"),
        *("backbone.freeze=[]", "backbone.lr_scales={conv1: 0.1}", "trainer.max_steps=4"),
    )
    assert thawed.returncode == 0, thawed.stderr
    assert "backbone.freeze=[] (was [conv1])" in thawed.stdout + thawed.stderr
