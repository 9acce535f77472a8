"""Going on with a run: what may change is applied and said, the rest refused; nothing is mixed or lost."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from facerec.cli.mistakes import config_folder
from facerec.errors import CheckpointError
from facerec.loading.noise import with_label_noise
from facerec.models import checkpoint
from facerec.packs.pack import open_pack
from facerec.packs.recordio import Record, RecordWriter
from facerec.settings import Applied, Free
from facerec.training import comparison
from facerec.training.loop import Trainer
from facerec.training.optimizers import OPTIMIZERS, OptimizerSettings
from facerec.training.run import assemble
from facerec.training.state import Position
from tests.folder_run import TINY, files, train
from tests.several import run_ranks
from tests.test_cli_train import failed, logged
from tests.tiny_run import TinyFaces, tiny_trainer

# -- what is compared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("data.label_noise=0.5", "data.label_noise=0.5 (was 0.0)"),
        ("input.channels=bgr", "input.channels=bgr (was rgb)"),
        ("data.size=48", "data.size=48 (was 32), and 2 more: backbone.input_size, input.size"),
        ("optimizer.weight_decay=0", "optimizer.weight_decay=0 (was 0.0005)"),
        ("head=cosface", "head.name=cosface (was arcface)"),
        ("seed=1", "seed=1 (was 0)"),
    ],
)
def test_another_mathematics_is_refused_by_name_and_the_run_stays_as_it_is(
    trained: Path, setting: str, named: str
) -> None:
    before = files(trained)
    assert named in failed(train(trained, "output_dir=run", "trainer.max_steps=4", setting))
    assert files(trained) == before


def test_other_identities_in_the_same_number_are_refused(work: Path) -> None:
    (work / "faces" / "anna").rename(work / "faces" / "zora")
    line = failed(train(work, "output_dir=run", "trainer.max_steps=4"))
    assert "its identity 0 is anna, that of the data is berta" in line


def test_fewer_images_and_other_images_are_refused(work: Path) -> None:
    (work / "faces" / "anna" / "0.png").rename(work / "faces" / "anna" / "other.png")
    assert "was made from other images" in failed(train(work, "output_dir=run", "trainer.max_steps=4"))
    (work / "faces" / "anna" / "other.png").rename(work / "faces" / "anna" / "0.png")
    Image.new("RGB", (32, 32)).save(work / "faces" / "anna" / "1.png")  # of another size
    assert "was made from other images" in failed(train(work, "output_dir=run", "trainer.max_steps=4"))
    for path in (work / "faces").glob("*/[1-7].png"):
        path.unlink()
    line = failed(train(work, "output_dir=run", "trainer.max_steps=4"))
    assert "was made from 24 images and stands at 16 of them in epoch 0, the data has 3" in line


def test_what_may_change_is_applied_and_said_in_a_line_each(work: Path) -> None:
    settings = ["optimizer.lr=0.01", "schedule=cosine", "trainer.batch_size=4", "trainer.clip_norm=1"]
    run = train(work, "output_dir=run", "trainer.max_steps=4", "trainer.log_every=2", *settings)
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stdout.splitlines() if line.startswith("changed ")]
    assert "changed    optimizer.lr=0.01 (was 0.05)" in said
    assert "changed    trainer.batch_size=4 (was 8)" in said
    assert {line.split()[1].partition("=")[0] for line in said} == {
        *("optimizer.lr", "schedule.name", "trainer.batch_size", "trainer.clip_norm", "trainer.max_steps")
    }
    state = checkpoint.load(work / "run" / "checkpoints" / "last.pt")
    assert state["sample"] == 24, "two steps of eight images and two of four"
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.5, rel=0.9)
    assert "lr: 0.01" in (work / "run" / ".hydra" / "config.yaml").read_text()
    assert "lr: 0.05" in (work / "run" / ".hydra.1" / "config.yaml").read_text()
    assert not (work / "run" / ".hydra.2").exists()


def test_a_setting_that_nobody_has_thought_of_must_be_as_it_was() -> None:
    state = {"config": {"head": {"m": 1, "new": 1}}, "random": {}, "classes": [], "sample": 0}
    with pytest.raises(CheckpointError, match=r"head\.new=2 \(was 1\)"):
        comparison.changes(Path("x"), state, config={"head": {"m": 1, "new": 2}}, faces=TinyFaces())


def test_a_checkpoint_with_a_setting_that_is_gone_goes_on() -> None:
    faces, config = TinyFaces(), {"head": {"m": 1}}
    before = {"head": {"m": 1, "weight_dtype": "bf16"}}
    state = {"config": before, "random": {"cpu": [0]}, "classes": faces.classes, "sample": 0}
    assert comparison.changes(Path("x"), state, config=config, faces=faces) == {}


def test_data_that_were_moved_are_the_same_and_any_other_image_order_or_label_is_not(tmp_path: Path) -> None:
    def pack(name: str, labels: list[Any], text: str = "image") -> str:
        (tmp_path / name).mkdir()
        with RecordWriter(tmp_path / name / "train.rec") as writer:
            for key, label in enumerate(labels):
                writer.write(key, Record(0, label, key, 0, f"{text} {key}".encode()))
        return open_pack(tmp_path / name).fingerprint

    first = pack("one", [0, 0, 1, 1])
    assert pack("moved", [0, 0, 1, 1]) == first
    others = [pack("a", [0, 1, 1, 1]), pack("b", [0, 0, 1, 2]), pack("c", [0, 0, 2, 2])]
    others += [pack("longer", [0, 0, 1, 1], "a longer image"), pack("more", [0, 0, 1, 1, 1])]
    noisy = with_label_noise(open_pack(tmp_path / "one"), 0.5).fingerprint
    assert len({first, noisy, *others}) == 7


def test_the_best_of_other_targets_is_not_the_best_any_more(tmp_path: Path) -> None:
    def trainer(**evaluation: Any) -> Trainer:
        made = tiny_trainer(tmp_path, trainer_max_steps=1)
        made.config = {**made.config, "eval": evaluation}
        return made

    first = trainer(targets=["a"], flip=True)
    first.position = Position(best=0.9, highest={"a": 0.9})
    first.fit()
    for given, best, highest in (
        ({"targets": ["a"], "flip": True, "batch_size": 7}, 0.9, {"a": 0.9}),
        ({"targets": ["a", "b"], "flip": True}, float("-inf"), {"a": 0.9}),
        ({"targets": ["a"], "flip": False}, float("-inf"), {}),
    ):
        again = trainer(**given)
        again.resume(tmp_path / "checkpoints" / "last.pt")
        assert (again.position.best, again.position.highest) == (best, highest)


def test_the_fields_of_a_plugins_settings_say_themselves_what_may_differ() -> None:
    @OPTIMIZERS.register("of a plugin")
    @dataclass(frozen=True)
    class Mine(OptimizerSettings):
        speed: Free[int] = 1
        strength: Applied[int] = 1

    faces = TinyFaces()
    sections: dict[str, Any] = {"optimizer": {"name": "of a plugin"}, "head": {"name": "arcface"}}
    state = {"config": sections, "random": {"cpu": [0]}, "classes": faces.classes, "sample": 0}
    try:
        now = {
            "optimizer": sections["optimizer"] | {"speed": 2, "strength": 2},
            "head": sections["head"] | {"memory": "recompute", "block_size": 7, "sharded": True, "m": 0.5},
        }
        found = comparison.changes(Path("x"), state, config=now, faces=faces)
        assert found == {"optimizer.strength": "2 (was 1)"}
    finally:
        del OPTIMIZERS._builders["of a plugin"]


# -- finished, requeued, unfrozen ----------------------------------------------------------------------------


def test_a_finished_run_says_so_and_goes_on_only_with_what_has_an_effect(work: Path) -> None:
    again = train(work, "output_dir=run", "trainer.max_steps=2")
    assert again.returncode == 0 and "finished   at step 2 already" in again.stdout
    before = files(work / "run")
    line = failed(train(work, "output_dir=run", "trainer.max_steps=2", "optimizer.lr=1e-9"))
    assert "has ended, at step 2, so that optimizer.lr=1e-09 (was 0.05) would change nothing" in line
    assert files(work / "run") == before
    more = train(work, "output_dir=run", "trainer.max_steps=3")
    assert "changed    trainer.max_steps=3 (was 2)" in more.stdout
    assert "\nstep 3 " in more.stdout and "finished   at step 3 of 3" in more.stdout


def test_a_sweep_started_again_with_other_settings_does_not_pass_the_old_runs_for_new_ones(
    work: Path,
) -> None:
    settings = ["-m", "output_dir=sweep", "trainer.max_steps=1"]
    assert train(work, *settings, "head.m=0.2,0.3").returncode == 0
    overrides = (work / "sweep" / "0" / ".hydra" / "overrides.yaml").read_bytes()
    again = train(work, *settings, "head.m=0.4,0.3")
    assert "head.m=0.4 (was 0.2)" in failed(again)
    assert "run 0: " in again.stdout and "finished   at step 1 already" in again.stdout
    assert (work / "sweep" / "0" / ".hydra" / "overrides.yaml").read_bytes() == overrides
    assert "head.m=0.2,0.3" in (work / "sweep" / "multirun.1.yaml").read_text()


def test_a_refused_run_of_a_sweep_has_its_row_and_its_reason(work: Path) -> None:
    run = train(work, "-m", "output_dir=sweep", "trainer.max_steps=1", "seed=-1,1")
    assert "seed=-1: must be" in failed(run)
    assert "| 0   | -1   |" in run.stdout and (work / "sweep/1/checkpoints/last.pt").is_file()
    assert logged(work / "sweep/0/train.log")[0].startswith("facerec-train: seed=-1: must be")


def test_a_resume_that_is_refused_says_nothing_else_and_what_goes_on_is_described(work: Path) -> None:
    settings = ["output_dir=refused", "trainer.resume=run/checkpoints/last.pt", "trainer.max_steps=3"]
    refused = train(work, *settings, "seed=77")
    assert "belongs to a run with other settings: seed=77" in failed(refused) and not refused.stdout
    run = train(work, *settings, "optimizer.lr=0.003")
    assert "lr=0.003" in next(line for line in run.stdout.splitlines() if line.startswith("optimizer"))


def test_a_job_that_started_from_a_path_and_is_queued_again_goes_on_from_its_own_state(work: Path) -> None:
    settings = ["output_dir=new", "trainer.resume=run/checkpoints/last.pt"]
    first = train(work, *settings, "trainer.max_steps=3")
    assert "resumed from run/checkpoints/last.pt: step 2" in first.stdout
    shutil.rmtree(work / "run")
    second = train(work, *settings, "trainer.max_steps=4")
    assert second.returncode == 0, second.stderr
    assert (
        "trainer.resume=run/checkpoints/last.pt: is left aside; the run goes on from its own" in second.stdout
    )
    assert "new/checkpoints/last.pt: step 3" in second.stdout


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_head_first_then_all_of_it(work: Path, optimizer: str) -> None:
    """The optimizer's state of the head goes on; that of the backbone begins."""
    settings = [f"optimizer={optimizer}", "optimizer.lr=0.01", f"output_dir={work / 'two'}"]
    frozen = train(work, *settings, "backbone.frozen=true", "trainer.max_steps=2")
    assert frozen.returncode == 0, frozen.stderr
    before = checkpoint.load(work / "two" / "checkpoints" / "last.pt")
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        given = [*TINY, *settings, f"data.root={work / 'faces'}", "trainer.max_steps=4"]
        config: Any = OmegaConf.to_container(hydra.compose("train", given), resolve=True)
    trainer = assemble(config, work / "two")
    kept = trainer.optimizer.state[trainer.head.weight]
    (head,) = before["optimizer"]["state"].values()
    assert head.keys() == kept.keys() and all(torch.equal(kept[name], head[name]) for name in head)
    first = next(trainer.backbone.parameters())
    start = first.detach().clone()
    trainer.fit()
    assert trainer.position.step == 4 and not torch.equal(first, start)
    assert len(checkpoint.load(work / "two" / "checkpoints" / "last.pt")["optimizer"]["state"]) > 100


def head_then_all(folder: Path) -> None:
    given: Mapping[str, Any] = {"head_options": {"sharded": True}, "trainer_batch_size": 3}
    tiny_trainer(folder, **given, start_frozen=True, trainer_max_steps=2).fit()
    trainer = tiny_trainer(folder, **given)
    momentum = trainer.optimizer.state[trainer.head.weight]
    assert not momentum
    (last,) = (folder / "checkpoints").glob("last-*")
    trainer.resume(last)
    assert trainer.optimizer.state[trainer.head.weight]["momentum_buffer"].abs().sum() > 0
    trainer.fit()


def test_the_head_first_then_all_of_it_in_two_processes(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, head_then_all)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("step", "2"),
        ("step", -1),
        ("step", True),
        ("step", 2**99),
        ("epoch", 2**63),
        ("evaluated", torch.zeros(2)),
        ("sample", None),
        ("classes", [["anna"]]),
        ("config", [1]),
        ("head", {1: 2}),
        ("random", {"cpu": 5}),
        ("optimizer", {"state": {}}),
        ("optimizer", {"state": {0: 5}, "param_groups": []}),
        ("optimizer", {"state": {}, "param_groups": [{"params": [0], "names": [[0]]}]}),
    ],
)
def test_a_state_of_another_kind_is_refused_by_name(tmp_path: Path, part: str, value: Any) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.save()
    last = trainer.checkpoints / "last.pt"
    checkpoint.save(last, checkpoint.load(last) | {part: value})
    with pytest.raises(CheckpointError, match=f"its {part} is not what a run saves there"):
        trainer.resume(last)
