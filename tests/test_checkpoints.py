"""Checkpoints that change on the disk are noticed, and the one before takes their place."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from facerec import distributed
from facerec.errors import CheckpointError, DamagedCheckpointError, NonFiniteError
from facerec.models import checkpoint
from facerec.models.checkpoint import list_checkpoints, open_checkpoint
from facerec.models.checkpoint.folder import FolderSave, is_folder
from facerec.training.loop import Trainer
from tests.several import run_ranks
from tests.test_training import At, assert_identical, interrupt, weights
from tests.tiny_run import tiny_trainer


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_no_single_bit_of_a_checkpoint_changes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    trainer = tiny_trainer(tmp_path, trainer_max_steps=2)
    trainer.fit()
    shutil.copy(tmp_path / "checkpoints" / "last.pt", path)
    before, content, chosen = checkpoint.load(path), path.read_bytes(), random.Random(1)
    refused = 0
    for bit in chosen.sample(range(8 * len(content)), 60):
        path.write_bytes(content)
        flip(path, bit)
        try:
            assert equal(checkpoint.load(path), before), f"bit {bit} was accepted"  # it was padding
        except DamagedCheckpointError as error:
            assert f"ckpt={path}: not a checkpoint, or a damaged one" in str(error)
            refused += 1
    assert refused > 40


def save_sharded(folder: Path) -> None:
    options = {"sharded": True}
    tiny_trainer(folder, trainer_max_steps=2, head_options=options, optimizer_name="adamw").fit()


def test_no_single_bit_of_a_checkpoint_folder_changes_unnoticed(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, save_sharded)
    (folder,) = (tmp_path / "checkpoints").glob("last-*")

    def read() -> list[Any]:
        opened = open_checkpoint(folder)
        return [opened.rest, *(opened.read(section) for section in ("backbone", "head", "optimizer"))]

    before, chosen = read(), random.Random(2)
    for path in folder.iterdir():
        content, refused = path.read_bytes(), 0
        for bit in chosen.sample(range(8 * len(content)), 10):
            flip(path, bit)
            try:
                assert equal(read(), before), f"bit {bit} of {path.name} was accepted"
            except CheckpointError as error:
                assert f"ckpt={folder}" in str(error)
                refused += 1
            path.write_bytes(content)
        assert refused, path.name


def save_a_step_again(folder: Path) -> None:
    trainer = tiny_trainer(folder, trainer_max_steps=2, head_options={"sharded": True})
    trainer.fit()
    trainer.saved = None
    distributed.all_gather_object(None)  # the first one concludes a save
    (before,) = list_checkpoints(trainer.checkpoints)
    finish = FolderSave.finish

    def watched(saving: FolderSave) -> None:
        finish(saving)
        if distributed.rank() > 0:  # the first may be beyond the exchange already
            return
        assert saving.folder != before and is_folder(before), "it counts until the other does"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderSave, "finish", watched)
        trainer.save()
    distributed.all_gather_object(None)
    assert list_checkpoints(trainer.checkpoints) == [before]


def test_a_step_that_is_saved_again_has_a_checkpoint_all_the_time(
    tmp_path: Path,
) -> None:
    run_ranks(2, tmp_path, save_a_step_again)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_checkpoints_are_kept_as_asked_for(tmp_path: Path, keep: int) -> None:
    tiny_trainer(tmp_path, trainer_max_steps=5, trainer_save_every=1, trainer_keep_last=keep).fit()
    states = list_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in states] == ["last.pt", "last.1.pt", "last.2.pt"][:keep]
    assert [checkpoint.load(path)["step"] for path in states] == [5, 4, 3][:keep]
    assert len(list((tmp_path / "checkpoints").iterdir())) == keep


def test_a_resume_falls_back_on_the_checkpoint_before_a_damaged_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tiny_trainer(tmp_path / "whole")
    whole.fit()
    tiny_trainer(tmp_path, trainer_save_every=3, reporters=[At(7, interrupt)]).fit()
    newest = tmp_path / "checkpoints" / "last.pt"
    flip(newest, 8 * (len(newest.read_bytes()) // 2))
    resumed = tiny_trainer(tmp_path)
    resumed.resume(newest)
    assert resumed.position.step == 6
    (said,) = [record.message for record in caplog.records if record.name == "facerec.models.checkpoint.run"]
    assert "last.pt: not a checkpoint, or a damaged one" in said
    assert "it is now called last.pt.damaged, and the run goes on from" in said and "last.1.pt" in said
    resumed.fit()
    assert_identical(weights(resumed), weights(whole))
    assert [path.name for path in list_checkpoints(newest.parent)] == ["last.pt", "last.1.pt"]


def test_the_only_checkpoint_and_those_of_other_folders_are_not_replaced(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, trainer_max_steps=2, trainer_save_every=1).fit()
    newest = tmp_path / "checkpoints" / "last.pt"
    flip(newest, 8 * (len(newest.read_bytes()) // 2))
    with pytest.raises(DamagedCheckpointError, match=r"last\.pt: not a checkpoint, or a damaged one"):
        tiny_trainer(tmp_path / "other").resume(newest)
    (newest.with_name("last.1.pt")).unlink()
    with pytest.raises(DamagedCheckpointError, match=r"last\.pt: not a checkpoint, or a damaged one"):
        tiny_trainer(tmp_path).resume(newest)
    assert newest.is_file()


@pytest.mark.parametrize("name", ["backbone.0.weight", "head.weight"])
def test_weights_that_an_update_made_infinite_are_not_saved(tmp_path: Path, name: str) -> None:
    def overflow(trainer: Trainer) -> None:
        with torch.no_grad():
            dict(torch.nn.ModuleDict(trainer.modules).named_parameters())[name][0] = torch.inf

    trainer = tiny_trainer(tmp_path, trainer_save_every=2, reporters=[At(4, overflow)])
    kept = tmp_path / "checkpoints" / "last.pt"
    said = rf"step 4: the weights are not finite, seen in the value of {name}; {kept} is the last good"
    with pytest.raises(NonFiniteError, match=said):
        trainer.fit()
    assert checkpoint.load(kept)["step"] == 2


FORMER = Path(__file__).parent / "fixtures" / "checkpoints"  # of version 0.1.0


def test_a_file_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.resume(FORMER / "last.pt")
    written = torch.load(FORMER / "last.pt", weights_only=False)
    assert trainer.position.step == written["step"] == 4
    for name in ("backbone", "head", "random"):
        assert equal(trainer.parts[name].state_dict(), written[name]), name
    assert equal(trainer.optimizer.state_dict()["state"], written["optimizer"]["state"])
    trainer.fit()


def test_a_folder_of_an_earlier_version_resumes_on_one_rank_and_has_what_torch_reads(tmp_path: Path) -> None:
    folder = FORMER / "last-00000004"
    trainer = tiny_trainer(tmp_path, optimizer_name="adamw", trainer_batch_size=3)
    trainer.resume(folder)
    assert trainer.position.step == 4
    sections = {name: trainer.parts[name].state_dict() for name in ("backbone", "head")}
    present = {
        f"{section}/{key}": value for section, state in sections.items() for key, value in state.items()
    }
    for index, values in trainer.optimizer.state_dict()["state"].items():
        present |= {f"optimizer/{index}/{key}": value for key, value in values.items()}
    written = {name: torch.zeros_like(tensor) for name, tensor in present.items()}
    dcp.load(written, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    assert equal(present, written) and len(written) > 30
    trainer.fit()
