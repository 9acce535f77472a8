"""Checkpoint folders of several ranks: read, passed over when unfinished, refused when damaged or hostile."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch

from facerec import create_backbone, distributed, load_model
from facerec.errors import CheckpointError
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint
from facerec.models.checkpoint import RunCheckpoints, newest_checkpoint, open_checkpoint
from facerec.models.checkpoint.folder import stored_tensors
from facerec.models.weights import load_pretrained
from tests.several import run_ranks
from tests.test_parallel import first_half


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(2, folder, first_half, False)
    last = newest_checkpoint(folder / "run" / "checkpoints")
    assert last is not None and last.is_dir()
    return last


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "last-00000003"))


def test_the_backbone_alone_can_be_read_whole(saved: Path) -> None:
    backbone = open_checkpoint(saved).read("backbone")
    expected = torch.load(saved.parents[2] / "half.pt")
    for name, tensor in backbone.items():
        assert torch.equal(tensor, expected[name])
    head = open_checkpoint(saved).read("head")
    assert torch.equal(head["weight"], expected["head.weight"])


class Thief:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["FACEREC_TEST_THIEF"],)


def test_a_metadata_file_that_names_code_is_refused_and_runs_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loot = tmp_path / "loot"
    monkeypatch.setenv("FACEREC_TEST_THIEF", str(loot))
    (folder / ".metadata").write_bytes(pickle.dumps(Thief()))
    with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
        stored_tensors(folder)
    assert not loot.exists()


def test_a_save_that_was_never_finished_does_not_count(saved: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "last-00000009"
    shutil.copytree(saved, unfinished)
    (unfinished / "run.pt").unlink()
    assert newest_checkpoint(tmp_path) is None
    complete = tmp_path / "last-00000003"
    shutil.copytree(saved, complete)
    assert newest_checkpoint(tmp_path) == complete


def test_the_newest_state_is_the_one_of_most_steps_whatever_the_times_of_its_files(
    saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "last-00000009"
    shutil.copytree(saved, folder)
    for step, expected in ((3, folder), (12, tmp_path / "last.pt")):
        checkpoint.save(tmp_path / "last.pt", {"step": step})
        assert newest_checkpoint(tmp_path) == expected
        for path, when in ((folder / "run.pt", 2000), (tmp_path / "last.pt", 1000)):
            os.utime(path, (when, when))
        assert newest_checkpoint(tmp_path) == expected


def test_a_metadata_file_changes_no_class_of_the_process_that_reads_it(folder: Path) -> None:
    """pickle's BUILD sets attributes on whatever stands there, a class too: of Path, for every path after."""
    whole = (folder / ".metadata").read_bytes()
    before = vars(PosixPath).copy()
    for module, name in (("pathlib", "PosixPath"), ("torch", "Size"), ("collections", "OrderedDict")):
        for state in ({"replace": None, "_str": "/elsewhere"}, (None, {"_str": "/elsewhere"})):
            attack = f"c{module}\n{name}\n".encode() + pickle.dumps(state, 2)[2:-1] + b"b0"
            (folder / ".metadata").write_bytes(whole[:2] + attack + whole[2:])
            with pytest.raises(
                CheckpointError, match=r"damaged \(its \.metadata: it sets attributes of what has"
            ):
                stored_tensors(folder)
    assert vars(PosixPath) == before and str(folder) != "/elsewhere"


CLAIMS = {
    "another folder's file": (b"\x0c__0_0.distcp", b"\x0c../secret.pt"),
    "a part that is longer than its file": (b"\x8c\x06length\x94M", b"\x8c\x06length\x94J\xff\xff\xff\x7f0M"),
    "a class in the place of another": (b"_StorageInfo", b"_StorageEvil"),
    "another name": (b"ChunkStorageMetadata", b"ChunkStorageMetadatb"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_metadata_file_claims_is_held_against_the_files(folder: Path, claim: str) -> None:
    content = (folder / ".metadata").read_bytes()
    true, false = CLAIMS[claim]
    assert true in content
    (folder / ".metadata").write_bytes(content.replace(true, false, 1))
    with pytest.raises(CheckpointError, match="damaged"):
        stored_tensors(folder)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x05."])
def test_damaged_folders_are_said_to_be_damaged(saved: Path, folder: Path, damage: bytes) -> None:
    (folder / ".metadata").write_bytes(damage)
    with pytest.raises(CheckpointError, match="damaged"):
        stored_tensors(folder)
    shutil.copy(saved / ".metadata", folder / ".metadata")
    weights = max(open_checkpoint(saved).read("backbone").values(), key=torch.numel).numpy().tobytes()
    for file in folder.glob("*.distcp"):
        content = bytearray(file.read_bytes())
        if weights in content:
            content[content.index(weights) + len(weights) // 2] ^= 1
            file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(folder).read("backbone")
    for file in folder.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(folder).read("backbone")


def make_published_like(folder: Path) -> None:
    """A checkpoint folder of two processes, of a network that its settings name."""
    torch.manual_seed(distributed.rank())
    backbone = create_backbone("mobilefacenet", embedding_size=8, input_size=32)
    head = {"weight": torch.full((3 - distributed.rank(), 8), float(distributed.rank()))}
    shards = {"head/weight": (3 * distributed.rank(), 3 + 2 * distributed.rank(), 5)}
    config = {"backbone": {"name": "mobilefacenet", "embedding_size": 8, "input_size": 32}}
    state = {"config": config, "input": Preprocessing(size=32).to_dict(), "step": 3, "epoch": 1}
    state |= {"backbone": backbone.state_dict(), "head": head}
    RunCheckpoints(folder).save(state, shards)


def test_a_checkpoint_folder_is_a_model_to_evaluate_and_weights_to_start_from(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, make_published_like)
    folder = tmp_path / "last-00000003"
    model = load_model(folder, device="cpu")
    assert (model.step, model.input.size) == (3, 32)
    torch.manual_seed(0)  # of the first process, whose backbone counts
    first = create_backbone("mobilefacenet", embedding_size=8, input_size=32)
    for name, tensor in first.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    other = create_backbone("mobilefacenet", embedding_size=8, input_size=32)
    load_pretrained(other, folder)
    assert torch.equal(other.state_dict()["conv1.conv.weight"], first.state_dict()["conv1.conv.weight"])
    assert open_checkpoint(folder).read("head")["weight"][:, 0].tolist() == [0, 0, 0, 1, 1]
