"""Going on with a run: what may change is applied and said, the rest refused; nothing is mixed or lost."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from facerec import checkpoint
from facerec.cli.compose import config_folder
from facerec.data.noise import with_label_noise
from facerec.data.packs import open_pack
from facerec.data.recordio import Record, RecordWriter
from facerec.errors import CheckpointError
from facerec.training import comparison
from facerec.training.loop import Trainer
from facerec.training.run import assemble
from facerec.training.state import Position
from tests.several import together
from tests.test_cli_train import command, failed
from tests.tiny_run import TinyFaces, tiny_trainer

TINY = [
    *(
        "backbone=mobilefacenet",
        "backbone.embedding_size=16",
        "data=folder",
        "data.root=faces",
        "data.size=32",
    ),
    *(
        "data.workers=1",
        "trainer.batch_size=8",
        "trainer.log_every=1",
        "trainer.threads=1",
        "trainer.device=cpu",
    ),
    *("eval.targets=[]", "schedule=constant", "optimizer.lr=0.05"),
]


def make_faces(root: Path, names: tuple[str, ...] = ("anna", "berta", "clara"), images: int = 8) -> None:
    """A folder for each identity, of small random images."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(images):
            pixels = np.random.default_rng([number, i]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder of faces, and of a run that has ended after two of the three steps of an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    make_faces(folder / "faces")
    run = command("facerec-train", *TINY, "output_dir=run", "trainer.max_steps=2", cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to work in."""
    return Path(shutil.copytree(trained, tmp_path / "work"))


def train(cwd: Path, *settings: str) -> Any:
    many = ["-m"] if "-m" in settings else []
    return command("facerec-train", *many, *TINY, *(s for s in settings if s != "-m"), cwd=cwd)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what is compared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("data.label_noise=0.5", "data.label_noise=0.5 (was 0.0)"),
        ("input.channels=bgr", "input.channels=bgr (was rgb)"),
        ("data.size=48", "data.size=48 (was 32), and 2 more: backbone.input_size, input.size"),
        ("optimizer.weight_decay=0", "optimizer.weight_decay=0 (was 0.0005)"),
        ("optimizer.momentum=0.5", "optimizer.momentum=0.5 (was 0.9)"),
        ("data.mirror=false", "data.mirror=false (was true)"),
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
        *("optimizer.lr", "schedule.name", "trainer.batch_size", "trainer.clip_norm", "trainer.max_steps"),
        *({"schedule.milestones"} if "milestones" in (work / "run/.hydra.1/config.yaml").read_text() else ()),
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


def test_data_that_were_moved_are_the_same_and_any_other_image_order_or_label_is_not(tmp_path: Path) -> None:
    def pack(name: str, labels: list[Any], text: str = "picture") -> str:
        (tmp_path / name).mkdir()
        with RecordWriter(tmp_path / name / "train.rec") as writer:
            for key, label in enumerate(labels):
                writer.write(key, Record(0, label, key, 0, f"{text} {key}".encode()))
        return open_pack(tmp_path / name).fingerprint

    first = pack("one", [0, 0, 1, 1])
    assert pack("moved", [0, 0, 1, 1]) == first
    others = [pack("a", [0, 1, 1, 1]), pack("b", [0, 0, 1, 2]), pack("c", [0, 0, 2, 2])]
    others += [pack("longer", [0, 0, 1, 1], "a longer picture"), pack("more", [0, 0, 1, 1, 1])]
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
        ({"targets": ["a", "b"], "flip": True}, -1.0, {"a": 0.9}),
        ({"targets": ["a"], "flip": False}, -1.0, {}),
    ):
        again = trainer(**given)
        again.resume(tmp_path / "checkpoints" / "last.pt")
        assert (again.position.best, again.position.highest) == (best, highest)


def test_every_setting_that_may_differ_is_one_that_there_is() -> None:
    """A renamed setting would otherwise slip from its list unnoticed."""
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        names = comparison._flat(OmegaConf.to_container(hydra.compose("train"), resolve=True))
    for name in {*comparison._FREE, *comparison._MAY_CHANGE} - {"schedule.*", "trainer.keep_last"}:
        assert name in names or name == "eval.protocol", name


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
    assert "\nstep 3 " in more.stdout and "finished   at" not in more.stdout


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
    assert (work / "sweep/0/train.log").read_text().startswith("facerec-train: seed=-1: must be")


def test_a_resume_that_is_refused_says_nothing_else_and_what_goes_on_is_described(work: Path) -> None:
    settings = ["output_dir=refused", "trainer.resume=run/checkpoints/last.pt", "trainer.max_steps=3"]
    refused = train(work, *settings, "seed=77")
    assert "belongs to a run with other settings: seed=77" in failed(refused) and not refused.stdout
    run = train(work, *settings, "optimizer.lr=0.003")
    assert "'lr': 0.003" in next(line for line in run.stdout.splitlines() if line.startswith("optimizer"))


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
    together(2, tmp_path, head_then_all)


# -- one command at a time, and its records ------------------------------------------------------------------


def test_a_folder_in_use_is_refused_by_process_and_host_until_the_process_is_gone(work: Path) -> None:
    program = Path(sys.executable).with_name("facerec-train")
    endless = [str(program), *TINY, "output_dir=run", "trainer.epochs=100000", "trainer.save_every=1"]
    first = subprocess.Popen(endless, cwd=work, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert any(line.startswith("step ") for line in first.stdout), "it trains"
    line = failed(train(work, "output_dir=run"))
    assert f"process {first.pid} on host {os.uname().nodename} is at work in it" in line
    first.kill()
    first.wait()
    assert (work / "run" / ".lock").exists(), "a killed process leaves the file, and no lock"
    assert train(work, "output_dir=run", "trainer.epochs=0.1").returncode == 0
    assert not (work / "run" / ".lock").exists()


def test_a_file_system_without_locks_is_said_and_does_not_keep_a_run_from_starting(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    run = train(work, "output_dir=run", "trainer.max_steps=2")
    assert run.returncode == 0 and "no locks here (No locks available)" in run.stdout


def test_runs_and_sweeps_of_the_same_second_get_folders_of_their_own(work: Path) -> None:
    """A century stands for the second that the default folder is named after."""
    for _ in range(2):
        assert train(work, "output_dir=runs/${now:%C}", "trainer.max_steps=1").returncode == 0
        assert (
            train(work, "-m", "output_dir=sweeps/${now:%C}", "trainer.max_steps=1", "seed=1").returncode == 0
        )
    assert sorted(p.name for p in (work / "runs").iterdir()) == ["20", "20-2"]
    assert sorted(p.name for p in (work / "sweeps").iterdir()) == ["20", "20-2"]
    for run in ("runs/20", "runs/20-2", "sweeps/20/0", "sweeps/20-2/0"):
        assert (work / run / "checkpoints" / "last.pt").is_file() and (work / run / ".hydra").is_dir(), run
    assert "output_dir: " + str(work / "runs/20-2") in (work / "runs/20-2/.hydra/config.yaml").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["facerec-train", *TINY, "trainer.batch_size=0"],
        ["facerec-train", *TINY, "data.root=/nowhere", "output_dir=deep/run"],
        ["facerec-train", *TINY, "trainer.resume=nowhere.pt"],
        ["facerec-train", "-m", *TINY, "trainer.batch_size=0", "seed=1,2"],
        ["facerec-train", "-m", *TINY, "head=arcfase,cosface"],
        ["facerec-eval", "ckpt=nowhere.pt"],
        ["facerec-eval"],
    ],
    ids=" ".join,
)
def test_a_command_that_fails_leaves_no_folder(tmp_path: Path, arguments: list[str]) -> None:
    make_faces(tmp_path / "faces", images=1)
    failed(command(*arguments, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_an_empty_folder_of_the_users_is_left_to_him(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    failed(train(tmp_path, "output_dir=mine"))
    assert not list((tmp_path / "mine").iterdir())


def test_the_log_has_what_a_terminal_showed_and_why_the_run_died(work: Path) -> None:
    master, slave = pty.openpty()
    program = Path(sys.executable).with_name("facerec-train")
    settings = [*TINY, "output_dir=died", "optimizer.lr=1e30", "trainer.epochs=9"]
    run = subprocess.Popen([str(program), *settings], cwd=work, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while chunk := read(master):
        shown += chunk
    assert run.wait(timeout=60) == 1
    log = (work / "died" / "train.log").read_text().splitlines()
    assert log[0].startswith("data ") and any(line.startswith("step 1  epoch 0.33  loss ") for line in log)
    assert log[-1].startswith("facerec-train: step 2: the loss or a gradient is not finite")
    assert log[-1] in " ".join(shown.decode().split()), "the same line as on the terminal"
    assert b"\nstep 1  epoch" not in shown, "where a bar stands for it"


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the other side has closed
        return b""


def test_the_log_says_that_a_signal_ended_the_run(work: Path) -> None:
    program = Path(sys.executable).with_name("facerec-train")
    endless = [str(program), *TINY, "output_dir=run", "trainer.epochs=100000"]
    run = subprocess.Popen(endless, cwd=work, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert any(line.startswith("step ") for line in run.stdout)
    run.send_signal(signal.SIGTERM)
    printed = run.stdout.read()
    assert run.wait(timeout=60) == 128 + signal.SIGTERM
    log = (work / "run" / "train.log").read_text()
    assert "SIGTERM: saved at step " in log and printed.splitlines()[-1] in log.splitlines()


def test_a_lock_that_is_somebodys_link_is_not_followed(work: Path) -> None:
    (work / "own").mkdir()
    (work / "mine").write_text("kept")
    (work / "own" / ".lock").symlink_to(work / "mine")
    assert "own: cannot be written" in failed(train(work, "output_dir=own"))
    assert (work / "mine").read_text() == "kept"


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
