"""Several processes started from outside: by torchrun, by SLURM, by a sweep on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.cli import compose
from facerec.errors import FacerecError, UserError
from tests.folder_run import NETWORK
from tests.test_cli_train import command, failed, logged, process, succeeded

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.sbatch"
SBATCH = (shutil.which("bash"), SCRIPT)
PROGRAMS = Path(sys.executable).parent
SMALL = [
    *(
        *NETWORK,
        "data.workers=1",
        "trainer.batch_size=8",
        "optimizer.lr=0.01",
        "eval.bootstrap=0",
        "eval.figures=false",
    ),
]


def torchrun(*arguments: object, cwd: Path, world: int = 2) -> subprocess.CompletedProcess[str]:
    start = ("torchrun", "--standalone", "--nproc-per-node", world, "--no-python")
    return process(*start, PROGRAMS / "facerec-train", *arguments, cwd=cwd)


# -- torchrun ------------------------------------------------------------------------------------------------


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[float]:
    return [row["step"] for row in metrics(folder)]


@pytest.mark.slow
def test_torchrun_leaves_one_log_and_one_folder_which_a_single_process_goes_on_with(
    tmp_path: Path, orl: Path
) -> None:
    settings = [*SMALL, f"data.root={orl}"]
    started = succeeded(torchrun(*settings, "trainer.max_steps=2", "output_dir=out", cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert steps(tmp_path / "out") == [1, 2]
    log = logged(tmp_path / "out" / "train.log")
    for name in ("data ", "backbone ", "optimizer ", "highest_acc"):
        assert sum(line.startswith(name) for line in log) == 1, name
        assert sum(line.startswith(name) for line in started.stdout.splitlines()) == 1, name
    assert json.loads((tmp_path / "out" / "results.json").read_text())["targets"]["orl"]["pairs"] == 900
    assert (tmp_path / "out" / "checkpoints" / "last-00000002" / "run.pt").is_file()
    assert (tmp_path / "out" / "checkpoints" / "best.pt").is_file()

    alone = succeeded(
        process("facerec-train", *settings, "trainer.max_steps=3", "output_dir=out", cwd=tmp_path)
    )
    assert "resumed from" in alone.stdout and "step 2" in alone.stdout
    assert steps(tmp_path / "out") == [1, 2, 3]


@pytest.mark.parametrize("worlds", [[3], pytest.param([3, 4, 2], marks=pytest.mark.slow)])
def test_a_run_over_any_numbers_of_processes_is_that_of_one(
    tmp_path: Path, orl: Path, worlds: list[int]
) -> None:
    """24 images per step; 30 identities, which 4 ranks cannot divide evenly."""
    settings = ["experiment=orl_demo", f"data.root={orl}", *SMALL, "backbone.freeze_batch_norm=true"]
    steps = 2 * len(worlds)
    settings += ["schedule=constant", "trainer.check_replicas=true", "eval.every_steps=100"]
    for number, world in enumerate(worlds, 1):
        size, until = f"trainer.batch_size={24 // world}", f"trainer.max_steps={2 * number}"
        succeeded(torchrun(*settings, size, until, "output_dir=several", cwd=tmp_path, world=world))
    alone = [*settings, "trainer.batch_size=24", f"trainer.max_steps={steps}", "output_dir=one"]
    succeeded(process("facerec-train", *alone, cwd=tmp_path))
    one, several = ([row for row in metrics(tmp_path / name) if "loss" in row] for name in ("one", "several"))
    assert [row["step"] for row in several] == [row["step"] for row in one] == list(range(1, steps + 1))
    for a, b in zip(one, several, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4), a["step"]
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "several")
    )
    assert second["targets"]["orl"]["xnorm"] == pytest.approx(first["targets"]["orl"]["xnorm"], rel=1e-4)
    kept = tmp_path / "several" / "checkpoints" / f"last-{steps:08d}"
    assert Path(second["ckpt"]).name == kept.name and (kept / "run.pt").is_file()
    assert Path(first["ckpt"]).name == "last.pt"


def test_a_rank_that_fails_alone_says_why_and_no_other_covers_it(tmp_path: Path) -> None:
    """One damaged file, which the last of three processes meets while the others wait for it."""
    rng = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "faces" / f"{number // 4}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:200])
    settings = [*SMALL, "data=folder", "data.root=faces", "data.shuffle=none", "eval.targets=[]"]
    ended = torchrun(*settings, "trainer.batch_size=4", "output_dir=out", cwd=tmp_path, world=3)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if line.startswith("facerec-train")]
    assert said[0].startswith("facerec-train[2]: ") and "11.png" in said[0]
    assert all("lost contact" in line for line in said[1:])
    assert "facerec/training" not in ended.stderr, "no traceback of ours"


def test_a_mistake_under_torchrun_is_said_in_a_line_without_traceback(tmp_path: Path) -> None:
    ended = torchrun("head=nonsense", "output_dir=out", cwd=tmp_path)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("facerec-train")]
    # The second process waits for the first to say it; on a busy machine not always for long enough.
    assert 1 <= len(lines) <= 2
    assert all(
        line.replace("[1]", "").startswith("facerec-train: head=nonsense: no such head") for line in lines
    )
    assert "facerec/cli" not in ended.stderr, "no traceback of ours"
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_runs_of_several_processes_is_refused(tmp_path: Path) -> None:
    """Quicker than with torchrun: by the variables that it sets."""
    said = failed(command("facerec-train", "-m", "seed=1,2", cwd=tmp_path, RANK="0", WORLD_SIZE="2"))
    assert said.startswith("facerec-train: -m: not under torchrun")
    assert not list(tmp_path.iterdir())


# -- SLURM ---------------------------------------------------------------------------------------------------

SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'localhost\\nnode2\\n'; else echo "$*" >> "$STUBS/requeued"; fi
"""


def stubs(folder: Path, srun: str, scancel: str = "echo $* > $STUBS/signalled") -> dict[str, str]:
    """Programs of SLURM for `PATH`, and the variables of a job of two processes."""
    folder.mkdir()
    for name, text in {
        "scontrol": SCONTROL,
        "srun": f"#!/usr/bin/env bash\n{srun}\n",
        "scancel": f"#!/usr/bin/env bash\n{scancel}\n",
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{PROGRAMS}:{os.environ['PATH']}",
        "STUBS": str(folder),
        "SLURM_JOB_ID": str(os.getpid()),  # decides the port
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "4",
    }


def test_the_script_starts_a_process_a_gpu_that_knows_its_number_and_where_all_meet(tmp_path: Path) -> None:
    srun = """
        echo "srun $*"; shift
        export SLURM_PROCID=5 SLURM_LOCALID=1
        "$@"
    """
    environment = stubs(tmp_path / "stubs", srun)
    probe = tmp_path / "probe"
    probe.write_text(
        '#!/usr/bin/env bash\necho "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT: $*"\n'
    )
    probe.chmod(0o755)
    environment |= {"FACEREC_TRAIN": str(probe), "SLURM_JOB_ID": "1234567"}
    ended = succeeded(process(*SBATCH, "head=arcface", "output_dir=a b", cwd=tmp_path, **environment))
    assert "5 1 2 localhost 24567: head=arcface output_dir=a b" in ended.stdout
    assert "srun --kill-on-bad-exit=1 bash -c" in ended.stdout
    assert not (tmp_path / "stubs" / "requeued").exists()


@pytest.mark.parametrize(("status", "requeued"), [(143, True), (0, False), (1, False)])
def test_a_job_whose_time_is_up_queues_again_only_if_the_run_has_saved_and_stopped(
    tmp_path: Path, status: int, requeued: bool
) -> None:
    srun = f"kill -USR1 $PPID; until [ -s $STUBS/signalled ]; do sleep 0.05; done; sleep 0.2; exit {status}"
    environment = stubs(tmp_path / "stubs", srun)
    ended = process(*SBATCH, "output_dir=out", cwd=tmp_path, **environment)
    assert ended.returncode == status
    job = environment["SLURM_JOB_ID"]
    assert (tmp_path / "stubs" / "signalled").read_text().split() == ["--signal=TERM", job]
    record = tmp_path / "stubs" / "requeued"
    assert record.exists() == requeued
    if requeued:
        assert record.read_text().split() == ["requeue", job]


def test_a_run_that_ends_as_if_stopped_before_its_time_does_not_queue_again(tmp_path: Path) -> None:
    """Someone has cancelled it."""
    environment = stubs(tmp_path / "stubs", "exit 143")
    ended = process(*SBATCH, "output_dir=out", cwd=tmp_path, **environment)
    assert ended.returncode == 143
    assert not (tmp_path / "stubs" / "requeued").exists()


def test_the_script_says_what_it_needs(tmp_path: Path) -> None:
    environment = stubs(tmp_path / "stubs", "exit 0")
    without = process(*SBATCH, "head=arcface", cwd=tmp_path, **environment)
    assert without.returncode == 2 and "output_dir=FOLDER must be given" in without.stderr
    outside = process(*SBATCH, "output_dir=out", cwd=tmp_path, **{**environment, "SLURM_JOB_ID": ""})
    assert outside.returncode == 2 and "sbatch" in outside.stderr


# Two processes; as SLURM does, the first bad exit ends the other at once.
SRUN = """
shift
for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number "$@" & pids+=($!); done
echo "${pids[@]}" > $STUBS/pids
status=0
for _ in 0 1; do
    wait -n || { last=$?; [ $status = 0 ] && status=$last; kill -KILL "${pids[@]}" 2> /dev/null; }
done
exit $status
"""


@pytest.mark.slow
def test_a_job_whose_time_is_up_saves_queues_again_and_goes_on(tmp_path: Path, orl: Path) -> None:
    environment = stubs(tmp_path / "stubs", SRUN, scancel="kill -TERM $(cat $STUBS/pids)")
    settings = [*SMALL, f"data.root={orl}", "trainer.epochs=1000", "eval.targets=[]", "output_dir=out"]
    started = subprocess.Popen(
        ["bash", str(SCRIPT), *settings],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics, deadline = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGUSR1)
    printed, _ = started.communicate(timeout=120)
    assert started.returncode == 143, printed
    assert "SIGTERM: saving after this step" in printed and "queues again" in printed
    assert (tmp_path / "stubs" / "requeued").is_file()
    (saved,) = (tmp_path / "out" / "checkpoints").glob("last-*")
    assert (saved / "run.pt").is_file()
    done = int(saved.name.removeprefix("last-"))
    assert done >= 2

    again = succeeded(
        process(*SBATCH, *settings, f"trainer.max_steps={done + 1}", cwd=tmp_path, **environment)
    )
    assert f"step {done}" in again.stdout
    assert steps(tmp_path / "out") == list(range(1, done + 2))


# -- sweeps --------------------------------------------------------------------------------------------------


def test_processes_of_srun_that_do_not_know_of_each_other_are_refused(tmp_path: Path) -> None:
    ended = command("facerec-train", *SMALL, "output_dir=out", cwd=tmp_path, SLURM_STEP_NUM_TASKS="8")
    assert "srun: has started 8 processes that do not know of each other" in failed(ended)


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm"])
@pytest.mark.skipif(find_spec("submitit") is not None, reason="it is there")
def test_a_launcher_that_is_not_installed_says_what_to_install(tmp_path: Path, launcher: str) -> None:
    arguments = ["-m", f"hydra/launcher={launcher}", "seed=1,2", "output_dir=out"]
    ended = process("facerec-train", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert "pip install 'facerec[cluster]'" in ended.stderr and "Traceback" not in ended.stderr


def hydra_raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def main(**_: object) -> object:
        def decorate(_: object) -> object:
            def job() -> None:
                raise error

            return job

        return decorate

    monkeypatch.setattr(compose.hydra, "main", main)
    monkeypatch.setattr(sys, "argv", ["facerec-train"])


def test_a_run_that_the_cluster_has_killed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = type("UncompletedJobError", (RuntimeError,), {"__module__": "submitit.core.utils"})
    hydra_raising(
        monkeypatch, lost("Job 12_3 (task: 0) with path /x.pkl\nhas not produced any output\n\nlog")
    )
    with pytest.raises(FacerecError, match=r"^hydra/launcher: Job 12_3") as raised:
        compose.compose_and_run("train", lambda config, folder: None)
    assert not isinstance(raised.value, UserError) and "\n" not in str(raised.value)


def test_the_table_is_printed_where_a_run_elsewhere_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from omegaconf import OmegaConf

    from facerec.reporting.sweep import SweepTable

    for number, (margin, accuracy) in enumerate([(0.3, 0.9), (-1.0, None)]):
        hydra = tmp_path / str(number) / ".hydra"
        hydra.mkdir(parents=True)
        (hydra / "overrides.yaml").write_text(f"- head.m={margin}\n")
        if accuracy is not None:
            results = {"targets": {"lfw": {"accuracy": accuracy}}}
            (tmp_path / str(number) / "results.json").write_text(json.dumps(results))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    SweepTable().on_multirun_start(config)
    hydra_raising(monkeypatch, UserError("head.m=-1: …"))
    with pytest.raises(UserError, match=r"head\.m=-1"):
        compose.compose_and_run("train", lambda config, folder: None)
    assert "| 0   | 0.3    | 0.90000 " in capsys.readouterr().out
    assert (tmp_path / "sweep.csv").is_file()
    SweepTable().on_multirun_end(config)
    assert capsys.readouterr().out == "", "once"
