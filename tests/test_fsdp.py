"""A backbone sharded over the ranks by FSDP2 learns what replicas learn; its checkpoints serve either way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from facerec import create_backbone, distributed, load_model
from facerec.backbones import BACKBONES
from facerec.backbones.base import Backbone
from facerec.cli.mistakes import config_folder
from facerec.errors import ConfigError, UserError
from facerec.images.decode import ppm
from facerec.models import checkpoint
from facerec.models.checkpoint import newest_checkpoint
from facerec.packs.verification import write_verification
from facerec.training import cost, state
from facerec.training.dry_run import dry_run
from facerec.training.loop import Trainer
from facerec.training.reporter import Reporter, Run
from facerec.training.run import assemble
from facerec.training.settings import TrainerSettings
from facerec.training.stages import SECTIONS
from tests import several
from tests.several import run_ranks


class Block(nn.Module):
    recomputable = ("forward",)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(x)))


class Tiny(Backbone):
    """Two blocks, with sizes that neither two nor three ranks divide, and a parameter of a single row."""

    def __init__(self, embedding_size: int = 8, input_size: int = 16) -> None:
        super().__init__(embedding_size, input_size)
        self.stem = nn.Conv2d(3, 7, 3, stride=4)
        self.blocks = nn.Sequential(Block(7), Block(7))
        self.linear = nn.Linear(7 * 16, embedding_size)
        self.shift = nn.Parameter(torch.zeros(1, embedding_size))

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        return self.linear(self.blocks(self.stem(image_BCHW)).flatten(1)) + self.shift


@pytest.fixture(autouse=True, scope="module")
def _known_to_these_tests_alone() -> Iterator[None]:
    BACKBONES.register("fsdp_tiny")(Tiny)
    yield
    del BACKBONES._builders["fsdp_tiny"]


class Rows(Reporter):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def logged(self, run: Run, row: Any) -> None:
        self.rows.append({key: row[key] for key in ("step", "loss", "grad_norm")})


DATA = ["data=synthetic", "data.size=16", "data.identities=7", "data.images=44", "data.workers=1"]
TRAINER = [*DATA, "trainer.device=cpu", "trainer.log_every=1", "trainer.threads=1", "trainer.max_steps=4"]
TRAINER += ["head.s=16", "schedule=constant", "optimizer.lr=0.02", "eval.targets=[]"]
EVALUATED = [
    "eval.targets=[pairs]",
    "eval.at_start=true",
    "eval.bootstrap=0",
    "eval.figures=false",
    "eval.folds=2",
]

WAYS = {
    "plain": [],
    "clipped, in parts, sampled": [
        *("trainer.clip_norm=0.5", "trainer.accumulate=2", "head.sample_rate=0.5", "trainer.epochs=5"),
    ],
    "adamw, groups, average, frozen part, evaluated": [
        *("optimizer=adamw", "optimizer.lr=0.001", "+backbone.lr_scales={blocks.1: 0.3}", "trainer.ema=0.8"),
        *("+backbone.freeze=[blocks.0]", "trainer.clip_norm=0.1", "trainer.clip_part=backbone", *EVALUATED),
    ],
    "recomputed, taught, whole head": [
        *("trainer.checkpoint_activations=true", "head.sharded=false", "teacher.ckpt=teacher.pt"),
    ],
    "features of a teacher, bf16": [
        *("teacher.ckpt=teacher.pt", "teacher.features=1", "trainer.precision=bf16", "optimizer.lr=0.002"),
        "teacher.layers={blocks.0: blocks.0}",
    ],
    "exchanged in bf16": ["trainer.gradient_exchange=bf16", "optimizer.lr=0.002"],
}


def composed(folder: Path, name: str, settings: Sequence[str]) -> Any:
    """Return a configuration; the batches of all ranks together have twelve images."""
    BACKBONES.register("fsdp_tiny")(Tiny)  # in a rank
    settings = [one.replace("teacher.pt", str(folder.parent / "teacher.pt")) for one in settings]
    settings += [f"output_dir={folder / name}", f"eval.root={folder.parent}"]
    settings += [f"trainer.batch_size={12 // distributed.world_size()}"]
    with initialize_config_dir(str(config_folder()), version_base=None):
        composed = compose("train", overrides=[*TRAINER, *settings])
    config: Any = OmegaConf.to_container(composed, resolve=True)
    given = {k: v for k, v in config["backbone"].items() if k in ("freeze", "lr_scales", "freeze_batch_norm")}
    config["backbone"] = {"name": "fsdp_tiny", "embedding_size": 8, "input_size": 16, **given}
    return config


def train(folder: Path, name: str, settings: Sequence[str]) -> Trainer:
    """Train, and leave what came of it, as rank 0 has it."""
    rows = Rows()
    trainer = assemble(composed(folder, name, settings), folder / name, [rows])
    results = trainer.fit()
    parts = {"backbone": trainer.backbone} | ({} if trainer.ema is None else {"ema": trainer.ema})
    learnt = state.capture(trainer, parts, whole=True)
    found = {f"{part}.{key}": x for part in parts for key, x in learnt[part].items() if "running" not in key}
    for key, value in trainer.head.state_dict().items():
        gathered = distributed.all_gather_object(value)
        found[f"head.{key}"] = torch.cat(gathered) if key in trainer.head.sharded_parameters else gathered[0]
    if distributed.rank() == 0:
        found |= {f"{target}.xnorm": torch.tensor(result.xnorm) for target, result in results.items()}
        torch.save(found, folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(rows.rows))
    return trainer


def every_way(folder: Path) -> None:
    for number, settings in enumerate(WAYS.values()):
        train(folder, f"ddp-{number}", settings)
        trainer = train(folder, f"fsdp-{number}", [*settings, "trainer.fsdp=true"])
        held = sum(distributed.local(p).numel() for p in trainer.backbone.parameters())
        whole = sum(p.numel() for p in trainer.backbone.parameters())
        assert held < 0.8 * whole  # the ranks hold their parts
        state = trainer.optimizer.state_dict()["state"]
        assert sum(x.numel() for slots in state.values() for x in slots.values()) < 1.9 * whole
        with trainer.stages.backbone_of(trainer, trainer.stages.all[0]):  # a forecast leaves it as it is
            assert cost.of_run(trainer).symbols["W"] == whole
    dry_run(composed(folder, "dry", ["trainer.fsdp=true"]))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and pairs to verify."""
    folder = tmp_path_factory.mktemp("fsdp")
    torch.manual_seed(1)
    state = create_backbone("fsdp_tiny", embedding_size=8).state_dict()
    about = {"config": {"backbone": {"name": "fsdp_tiny", "embedding_size": 8, "input_size": 16}}}
    about["input"] = {"size": 16}
    checkpoint.save(folder / "teacher.pt", {"backbone": state, **about})
    pixels = np.random.default_rng(0).integers(0, 256, (22, 16, 16, 3), dtype=np.uint8)
    write_verification(folder / "pairs.bin", [ppm(image) for image in pixels], [True, False] * 5 + [True])
    return folder


EXACT = ["backbone.freeze_batch_norm=true", "trainer.ema=0.9", "optimizer=adamw", "optimizer.lr=0.002"]


def half(folder: Path, name: str, *settings: str) -> None:
    train(folder, name, [*EXACT, *settings, "trainer.max_steps=2"])


def rest(folder: Path, name: str, of: str, *settings: str) -> None:
    last = distributed.broadcast_object(newest_checkpoint(folder / of / "checkpoints"))
    train(folder, name, [*EXACT, *settings, f"trainer.resume={last}"])


def two_ranks(folder: Path) -> None:
    every_way(folder)
    half(folder, "half", "trainer.fsdp=true")
    half(folder, "half of replicas")
    rest(folder, "to replicas", "half")
    rest(folder, "to shards", "half of replicas", "trainer.fsdp=true")
    small = ["backbone=mobilefacenet", "backbone.embedding_size=8", "data.size=32", "trainer.batch_size=6"]
    evaluated = [*EVALUATED, f"eval.root={folder.parent}", "trainer.max_steps=2", "trainer.fsdp=true"]
    several.train(folder, {"command": [*TRAINER, *small, *evaluated]})


@pytest.fixture(scope="module")
def two(files: Path) -> Path:
    run_ranks(2, files / "2", two_ranks)
    return files / "2"


def assert_alike(folder: Path) -> None:
    for number, way in enumerate(WAYS):
        tolerance = {"rtol": 4e-2, "atol": 4e-3} if "bf16" in way else {"rtol": 1e-4, "atol": 2e-6}
        ddp, fsdp = (json.loads((folder / f"{kind}-{number}.json").read_text()) for kind in ("ddp", "fsdp"))
        assert len(ddp) == len(fsdp) == 4
        for one, other in zip(ddp, fsdp, strict=True):
            assert other == pytest.approx(one, rel=tolerance["rtol"]), way
        assert_close(folder / f"ddp-{number}.pt", folder / f"fsdp-{number}.pt", **tolerance)


def assert_close(one: Path, other: Path, rtol: float, atol: float) -> None:
    wanted, found = torch.load(one), torch.load(other)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_ranks_with_shards_learn_what_replicas_learn(two: Path) -> None:
    assert_alike(two)


@pytest.mark.slow
def test_three_ranks_with_shards_learn_what_replicas_learn(files: Path) -> None:
    run_ranks(3, files / "3", every_way)
    assert_alike(files / "3")


def test_the_command_evaluates_writes_its_records_and_says_what_is_sharded(two: Path) -> None:
    said = (two / "command" / "train.log").read_text()
    assert "finished   at step 2 of 2" in said, (two / "command.1.txt").read_text()
    assert "in each of 2 processes, which hold the backbone by shards (FSDP2)" in said
    assert "no projector with trainer.fsdp=true" in said
    written = json.loads((two / "command" / "results.json").read_text())["ckpt"]
    assert written.endswith("checkpoints/last-00000002") and Path(written).is_dir()


def test_checkpoints_of_shards_are_ordinary_models(two: Path) -> None:
    checkpoints, learnt = two / "fsdp-2" / "checkpoints", torch.load(two / "fsdp-2.pt")
    for path, exact in ((checkpoints / "best.pt", False), (newest_checkpoint(checkpoints), True)):
        assert path is not None
        state = load_model(path).backbone.state_dict()
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in Tiny().state_dict().items()}
        for name in (k for k in state if exact and f"backbone.{k}" in learnt):
            assert torch.equal(state[name], learnt[f"backbone.{name}"])


def test_a_run_goes_on_with_other_ranks_and_with_or_without_shards(two: Path) -> None:
    train(two, "straight", EXACT)
    rest(two, "to one", "half", "trainer.fsdp=true")
    run_ranks(3, two, rest, "to three", "half", "trainer.fsdp=true")
    for name in ("to replicas", "to shards", "to one", "to three"):
        assert_close(two / "straight.pt", two / f"{name}.pt", rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"compile": True}, "trainer.compile=true: needs trainer.fsdp=false"),
        ({"compile": "reduce-overhead"}, "trainer.compile=reduce-overhead: needs trainer.fsdp=false"),
        ({"check_replicas": 10}, "trainer.check_replicas=10: needs trainer.fsdp=false"),
        ({"precision": "fp16"}, "trainer.precision=fp16: with trainer.fsdp=true"),
    ],
)
def test_what_cannot_be_combined_is_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainerSettings(**other, fsdp=True)
    assert str(error.value).startswith(said)


def test_what_is_trained_stays_the_same_and_one_process_says_that_it_shards_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = composed(tmp_path, "run", ["trainer.fsdp=true"])
    assemble(config, tmp_path / "run")
    assert "trainer.fsdp=true (for several processes)" in caplog.text and "FSDP2" not in caplog.text
    later = {name: config[name] for name in SECTIONS}
    later["backbone"] = config["backbone"] | {"freeze": ["stem"]}
    config["stages"] = [{"step": 2, "backbone.freeze": ["stem"]}]
    with pytest.raises(
        UserError, match=r"^stage 1 \(step 2\): backbone\.freeze=.*stays the same in a run with"
    ):
        assemble(config, tmp_path / "other", (), [later])
