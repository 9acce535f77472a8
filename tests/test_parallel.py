"""Several processes train what one would: the same weights, the same log, and each other's checkpoints."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facerec import distributed
from facerec.backbones import create_backbone
from facerec.errors import CheckpointError, ConfigError, FacerecError, NonFiniteError, UserError
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint, sharded_checkpoint
from facerec.models.opening import load_model
from facerec.models.pretrained import load_pretrained
from facerec.training import parallel
from facerec.training.last import find
from facerec.training.loop import Trainer
from facerec.training.reporter import Reporter, Run
from tests import tiny_run
from tests.several import together
from tests.tiny_run import tiny_backbone, tiny_trainer

# Nothing here depends on which process an image goes to, so that all numbers of processes must agree.
# The last of the batches of 14 has 7 images, which two processes share out unevenly.
EXACT: dict[str, Any] = {
    "dropout": 0.0,
    "each": 7,
    "start_freeze_batch_norm": True,
    "optimizer_lr": 0.01,
}
SHARED_OUT = {"sharded": True}


class Stop(Reporter):
    """Sends a signal to one process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, run: Run) -> None:
        if run.position.step == self.step and distributed.rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class Rows(Reporter):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def logged(self, run: Run, row: Any) -> None:
        self.rows.append(dict(row))


def run(folder: Path, name: str, given: dict[str, Any], resume: bool = False, stop: int = 0) -> Trainer:
    """Train; leave the whole weights and the log as process 0 has them."""
    rows = Rows()
    trainer = tiny_trainer(folder / "run", reporters=[rows, *([Stop(stop)] if stop else [])], **given)
    if resume:
        last = find(trainer.checkpoints)
        assert last is not None
        trainer.resume(last)
    trainer.fit()
    weights = dict(trainer.backbone.state_dict())
    for key, value in trainer.head.state_dict().items():
        parts = distributed.all_gather_object(value.clone())
        weights[f"head.{key}"] = torch.cat(parts) if key in trainer.head.sharded_parameters else parts[0]
    if distributed.rank() == 0:
        torch.save(weights, folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(rows.rows))
    return trainer


def all_runs(folder: Path) -> None:
    """Several runs in the same processes, to start them only once."""
    batch = 14 // distributed.world_size()
    exact = {**EXACT, "trainer_batch_size": batch}
    for head in ("arcface", "softmax", "sphereface2"):
        run(folder / "a" / head, "weights", {**exact, "head": head, "head_options": SHARED_OUT})
    run(folder / "replicated", "weights", {**exact, "head_options": {"sharded": False}})
    accumulated = {**exact, "trainer_batch_size": batch // 7, "trainer_accumulate": 7}
    run(folder / "accumulated", "weights", {**accumulated, "head_options": SHARED_OUT})
    clipped = {**exact, "trainer_clip_norm": 0.05}
    run(folder / "clipped", "weights", {**clipped, "head_options": SHARED_OUT})


def make_folders(folder: Path) -> None:
    for name in ("a/arcface", "a/softmax", "a/sphereface2", "replicated", "accumulated", "clipped"):
        (folder / name).mkdir(parents=True)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    make_folders(one)
    make_folders(two)
    all_runs(one)
    together(2, two, all_runs)
    return one, two


def assert_close(one: Path, other: Path) -> None:
    first, second = torch.load(one), torch.load(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    "name", ["a/arcface", "a/softmax", "a/sphereface2", "replicated", "accumulated", "clipped"]
)
def test_two_processes_end_with_the_weights_of_one_that_takes_their_batches_together(
    one_and_two: tuple[Path, Path], name: str
) -> None:
    one, two = one_and_two
    assert_close(one / name / "weights.pt", two / name / "weights.pt")


def test_the_log_of_two_processes_is_that_of_one(one_and_two: tuple[Path, Path]) -> None:
    first, second = (json.loads((f / "a/arcface/weights.json").read_text()) for f in one_and_two)
    assert len(first) == len(second) > 5
    for a, b in zip(first, second, strict=True):
        for key in ("step", "epoch", "lr", "loss", "grad_norm", "target_cosine", "accuracy"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key


def interrupted(folder: Path) -> None:
    given = {"head_options": {"sharded": True, "sample_rate": 0.5}, "trainer_batch_size": 3}
    trainer = run(folder, "part", {**given, "trainer_log_every": 2}, stop=4)
    assert trainer.interrupted == signal.SIGTERM
    assert trainer.position.step == 4
    run(folder, "resumed", {**given, "trainer_log_every": 2}, resume=True)
    (folder / "straight").mkdir(exist_ok=True)
    run(folder / "straight", "whole", {**given, "trainer_log_every": 2})


def test_a_signal_to_one_process_ends_all_at_a_step_and_they_go_on_to_the_bit(tmp_path: Path) -> None:
    """With dropout, batch norm and sampled classes: every process's random numbers go on, too."""
    (tmp_path / "straight").mkdir()
    together(2, tmp_path, interrupted)
    resumed, whole = torch.load(tmp_path / "resumed.pt"), torch.load(tmp_path / "straight" / "whole.pt")
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name


def faults(folder: Path) -> None:
    """What goes wrong on one rank only; every rank says it."""
    given = {"head_options": {"sharded": True, "sample_rate": 0.5}, "trainer_batch_size": 3}
    steps = {"trainer_save_every": 2, "trainer_log_every": 1}
    trainer = tiny_trainer(folder / "nan", reporters=[Spoil(3, torch.nan)], **given, **steps)
    with pytest.raises(NonFiniteError, match=r"step 4: .*nan/checkpoints/last-00000002 is the last good"):
        trainer.fit()
    given["head_options"] = {"sharded": False}
    for every, found in ((True, 3), (2, 4)):
        spoil = [Spoil(3, 1e-6)]
        trainer = tiny_trainer(folder / "drift", reporters=spoil, **given, trainer_check_replicas=every)
        with pytest.raises(
            FacerecError, match=rf"^step {found}: head\.weight of rank 1 is not that of rank 0"
        ):
            trainer.fit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "tiny_backbone", with_a_parameter_that_does_nothing)
        trainer = tiny_trainer(folder / "idle", **given)
        with pytest.raises(ConfigError, match="idle takes no part in the loss"):
            trainer.fit()
    with pytest.raises(UserError, match=r"^head\.m: is 0 on rank 0 and 1 on rank 1"):
        parallel.require_alike({"seed": 0, "head.m": distributed.rank()})
    with pytest.raises(UserError, match="of rank 0"):
        distributed.rank_zero_result(partial(fail, f"of rank {distributed.rank()}"))
    assert distributed.rank_zero_result(distributed.rank) == 0


def with_a_parameter_that_does_nothing(dropout: float) -> nn.Module:
    backbone = tiny_backbone(dropout)
    backbone.idle = nn.Parameter(torch.zeros(1))
    return backbone


def fail(why: str) -> None:
    raise UserError(why)


class Spoil(Reporter):
    """Changes the class weights of rank 1 after a step."""

    def __init__(self, step: int, change: float) -> None:
        self.step, self.change = step, change

    def stepped(self, run: Run) -> None:
        if run.position.step == self.step and distributed.rank() == 1:
            with torch.no_grad():
                run.head.weight += self.change


def test_what_goes_wrong_on_one_rank_is_found_and_said_by_all(tmp_path: Path) -> None:
    together(2, tmp_path, faults)


def first_half(folder: Path, background: bool) -> None:
    given = {
        **EXACT,
        "each": 6,
        "trainer_batch_size": 6 // distributed.world_size(),
        "head_options": SHARED_OUT,
    }
    run(folder, "half", {**given, "trainer_save_in_background": background}, stop=3)


def second_half(folder: Path) -> None:
    given = {
        **EXACT,
        "each": 6,
        "trainer_batch_size": 6 // distributed.world_size(),
        "head_options": SHARED_OUT,
    }
    run(folder, f"from_{distributed.world_size()}", {**given, "trainer_keep_last": 1}, resume=True)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    given = {**EXACT, "each": 6, "trainer_batch_size": 6, "head_options": SHARED_OUT}
    run(whole, "weights", given)
    if before == 1:
        first_half(tmp_path, False)
    else:
        together(before, tmp_path, first_half, after == 3)
    if after == 1:
        second_half(tmp_path)
    else:
        together(after, tmp_path, second_half)
    assert_close(whole / "weights.pt", tmp_path / f"from_{after}.pt")
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("last*"))
    assert left == (["last.pt"] if after == 1 else ["last-00000015"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("saved")
    together(2, folder, first_half, False)
    last = find(folder / "run" / "checkpoints")
    assert last is not None and last.is_dir()
    return last


def test_the_backbone_alone_can_be_read_whole(saved: Path) -> None:
    backbone = sharded_checkpoint.read(saved, "backbone")
    expected = torch.load(saved.parents[2] / "half.pt")
    for name, tensor in backbone.items():
        assert torch.equal(tensor, expected[name])
    head = sharded_checkpoint.read(saved, "head")
    assert torch.equal(head["weight"], expected["head.weight"])


class Thief:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["FACEREC_TEST_THIEF"],)


def test_a_metadata_file_that_names_code_is_refused_and_runs_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle
    import shutil

    folder = tmp_path / "last-00000003"
    shutil.copytree(saved, folder)
    loot = tmp_path / "loot"
    monkeypatch.setenv("FACEREC_TEST_THIEF", str(loot))
    (folder / ".metadata").write_bytes(pickle.dumps(Thief()))
    with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
        sharded_checkpoint.read(folder, "backbone")
    assert not loot.exists()


def test_a_save_that_was_never_finished_does_not_count(saved: Path, tmp_path: Path) -> None:
    import shutil

    unfinished = tmp_path / "last-00000009"
    shutil.copytree(saved, unfinished)
    (unfinished / "run.pt").unlink()
    assert find(tmp_path) is None
    complete = tmp_path / "last-00000003"
    shutil.copytree(saved, complete)
    assert find(tmp_path) == complete


def test_the_newest_state_is_the_one_of_most_steps_whatever_the_times_of_its_files(
    saved: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "last-00000009"
    shutil.copytree(saved, folder)
    for step, newest in ((3, folder), (12, tmp_path / "last.pt")):
        checkpoint.save(tmp_path / "last.pt", {"step": step})
        assert find(tmp_path) == newest
        for path, when in ((folder / "run.pt", 2000), (tmp_path / "last.pt", 1000)):
            os.utime(path, (when, when))
        assert find(tmp_path) == newest


def test_a_metadata_file_changes_no_class_of_the_process_that_reads_it(saved: Path, tmp_path: Path) -> None:
    """pickle's BUILD sets attributes on whatever stands there, a class too: of Path, for every path after."""
    import pickle
    import shutil

    folder = tmp_path / "last-00000003"
    shutil.copytree(saved, folder)
    whole = (folder / ".metadata").read_bytes()
    before = vars(PosixPath).copy()
    for module, name in (("pathlib", "PosixPath"), ("torch", "Size"), ("collections", "OrderedDict")):
        for state in ({"replace": None, "_str": "/elsewhere"}, (None, {"_str": "/elsewhere"})):
            attack = f"c{module}\n{name}\n".encode() + pickle.dumps(state, 2)[2:-1] + b"b0"
            (folder / ".metadata").write_bytes(whole[:2] + attack + whole[2:])
            with pytest.raises(
                CheckpointError, match=r"damaged \(its \.metadata: it sets attributes of what has"
            ):
                sharded_checkpoint.read(folder, "backbone")
    assert vars(PosixPath) == before and str(folder) != "/elsewhere"


CLAIMS = {
    "another folder's file": (b"\x0c__0_0.distcp", b"\x0c../secret.pt"),
    "a part that is longer than its file": (b"\x8c\x06length\x94M", b"\x8c\x06length\x94J\xff\xff\xff\x7f0M"),
    "a class in the place of another": (b"_StorageInfo", b"_StorageEvil"),
    "another name": (b"ChunkStorageMetadata", b"ChunkStorageMetadatb"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_metadata_file_claims_is_held_against_the_files(
    saved: Path, tmp_path: Path, claim: str
) -> None:
    import shutil

    folder = tmp_path / "last-00000003"
    shutil.copytree(saved, folder)
    content = (folder / ".metadata").read_bytes()
    true, false = CLAIMS[claim]
    assert true in content
    (folder / ".metadata").write_bytes(content.replace(true, false, 1))
    with pytest.raises(CheckpointError, match="damaged"):
        sharded_checkpoint.read(folder, "backbone")


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x05."])
def test_damaged_folders_are_said_to_be_damaged(saved: Path, tmp_path: Path, damage: bytes) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / ".metadata").write_bytes(damage)
    with pytest.raises(CheckpointError, match="damaged"):
        sharded_checkpoint.read(folder, "backbone")
    shutil.copy(saved / ".metadata", folder / ".metadata")
    weights = max(sharded_checkpoint.read(saved, "backbone").values(), key=torch.numel).numpy().tobytes()
    for file in folder.glob("*.distcp"):
        content = bytearray(file.read_bytes())
        if weights in content:
            content[content.index(weights) + len(weights) // 2] ^= 1
            file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        sharded_checkpoint.read(folder, "backbone")
    for file in folder.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        sharded_checkpoint.read(folder, "backbone")


def test_samples_of_uneven_processes_are_gathered_and_given_back(tmp_path: Path) -> None:
    together(3, tmp_path, gather_uneven)


def gather_uneven(_: Path) -> None:
    sizes = [2, 0, 3]
    rank = distributed.rank()
    x = torch.full((sizes[rank], 2), float(rank), requires_grad=True)
    everyone: Tensor = distributed.Gather.apply(x, sizes)
    assert everyone[:, 0].tolist() == [0, 0, 2, 2, 2]
    assert distributed.local_samples(everyone, sizes).shape == x.shape
    (everyone * (rank + 1)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 6.0))  # 1 + 2 + 3: what all processes say of it
    assert distributed.all_reduce_mean(torch.tensor([float(rank)] * 2)) == 1.0
    assert distributed.broadcast_object(rank) == 0
    assert distributed.all_gather_object(rank) == [0, 1, 2]


def make_published_like(folder: Path) -> None:
    """A checkpoint folder of two processes, of a network that its settings name."""
    torch.manual_seed(distributed.rank())
    backbone = create_backbone("mobilefacenet", embedding_size=8, input_size=32)
    head = {"weight": torch.full((3 - distributed.rank(), 8), float(distributed.rank()))}
    rows = {"head/weight": (3 * distributed.rank(), 3 + 2 * distributed.rank(), 5)}
    tensors = {f"backbone/{k}": v for k, v in backbone.state_dict().items()}
    config = {"backbone": {"name": "mobilefacenet", "embedding_size": 8, "input_size": 32}}
    rest = {"config": config, "input": Preprocessing(size=32).to_dict(), "step": 3, "epoch": 1}
    tensors["head/weight"] = head["weight"]
    sharded_checkpoint.save(folder / "last-00000003", tensors, rows, rest).finish()


def test_a_checkpoint_folder_is_a_model_to_evaluate_and_weights_to_start_from(tmp_path: Path) -> None:
    together(2, tmp_path, make_published_like)
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
    assert sharded_checkpoint.read(folder, "head")["weight"][:, 0].tolist() == [0, 0, 0, 1, 1]
