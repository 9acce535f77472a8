"""facerec-train and facerec-eval as a user meets them: processes, files, exit statuses, messages."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from facerec.models import checkpoint
from facerec.packs.verification import write_verification
from tests.folder_run import NETWORK

SMALL = [*NETWORK, "trainer.batch_size=16", "optimizer.lr=0.01", "eval.bootstrap=20"]


class Ended(NamedTuple):
    """Outcome of a command: its exit status and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def command(
    name: str, *arguments: object, cwd: Path, out: io.StringIO | None = None, **environment: str
) -> Ended:
    """Run a console script's entry point in this process, which saves importing torch for each."""
    module = {"facerec-train": "train", "facerec-eval": "evaluate", "facerec-export": "export"}[name]
    main = importlib.import_module(f"facerec.cli.{module}").main
    out, err, root = out or io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        for key, value in environment.items():
            patch.setenv(key, value)
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as exit,
        ):
            main()
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level
    return Ended(int(exit.value.code or 0), out.getvalue(), err.getvalue())


def process(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment, or any program by its path, as a process of its own."""
    return subprocess.run(
        [str(Path(sys.executable).parent / name), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def logged(path: Path) -> list[str]:
    """The lines of a train.log, without the time that each begins with."""
    stamped = path.read_text().splitlines()
    assert stamped and re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", stamped[0])
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in stamped]


def succeeded(run: Any) -> Any:
    """A command that has ended well."""
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def done(*arguments: object, **how: Any) -> Ended:
    """Run a `command` that ends well."""
    return succeeded(command(*arguments, **how))


def failed(run: Ended, status: int = 2) -> str:
    """The one line that a failed command printed."""
    assert run.returncode == status, run.stderr + run.stdout
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run_folder(orl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the ORL faces, evaluated on the identities it has not seen."""
    folder = tmp_path_factory.mktemp("run")
    succeeded(
        process(
            "facerec-train", *SMALL, f"data.root={orl}", "trainer.max_steps=4", "output_dir=out", cwd=folder
        )
    )
    return folder


def test_a_run_leaves_what_the_manual_says(run_folder: Path) -> None:
    out = run_folder / "out"
    *rows, evaluation = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert evaluation["step"] == 4 and {"orl/accuracy", "orl/auc", "mean/accuracy_exact"} <= evaluation.keys()
    assert {"epoch", "loss", "lr", "samples_per_second", "grad_norm", "accuracy", "target_cosine"} <= rows[
        0
    ].keys()
    results = json.loads((out / "results.json").read_text())
    assert results["step"] == 4
    target = results["targets"]["orl"]
    assert target["pairs"] == 900 and target["folds"] == 10
    assert {
        "accuracy",
        "accuracy_std",
        "best_threshold",
        "xnorm",
        "auc",
        "eer",
        "tar_at_far",
    } <= target.keys()
    records = (".hydra/config.yaml", "history.jsonl", "report.html", "train.log")
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", *records):
        assert (out / name).is_file(), name
    assert any((out / "tensorboard").iterdir())
    assert any(out.glob("*.png"))


def test_a_run_says_what_is_wrong_with_its_data(tmp_path: Path) -> None:
    """Photographs that are not aligned, images and identities of the training in the test, odd folds."""
    rng = np.random.default_rng(0)
    for name in ("Ann", "Bob", "Cyd"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).resize((450, 300))
            image.save(tmp_path / "faces" / name / f"{i}.jpg")
    ann = [path.read_bytes() for path in sorted((tmp_path / "faces" / "Ann").iterdir())]
    other = io.BytesIO()
    Image.new("RGB", (112, 112)).save(other, "JPEG")
    same = [True] * 9 + [False]
    write_verification(
        tmp_path / "ann.bin",
        [one for i in range(9) for one in (ann[i % 4], ann[3])] + [ann[0], other.getvalue()],
        same,
        ["Ann", "Ann"] * 9 + ["Ann", "Zoe"],
    )
    run = done(
        "facerec-train",
        *(*SMALL, "data=folder", f"data.root={tmp_path / 'faces'}", "trainer.max_steps=1", "output_dir=out"),
        *(
            f"eval.targets=[{tmp_path / 'ann.bin'}]",
            "eval.figures=false",
            "trainer.batch_size=4",
            "data.size=64",
        ),
        cwd=tmp_path,
    )
    for said in (
        f"{tmp_path}/faces: images of 450×300 pixels are hardly aligned faces, which models expect",
        f"`facerec-data pack --align {tmp_path}/faces OUT`",
        "1 identity (Ann) and 4 of 5 images of ann are in the training set: its numbers are too good",
        "ann: 10 of 10 folds hold one kind of pairs only",
    ):
        assert said in run.stdout + run.stderr + (tmp_path / "out" / "train.log").read_text()


def test_the_log_says_what_is_trained_and_keeps_the_lines_that_people_grep(run_folder: Path) -> None:
    log = logged(run_folder / "out" / "train.log")
    heads = [line.split()[0] for line in log if line and not line.startswith("generated")]
    said = [
        "data",
        "backbone",
        "head",
        "optimizer",
        "schedule",
        "device",
        "memory",
        "work",
        "input",
        "evaluation",
    ]
    assert heads[: len(said)] == said
    assert any(line.startswith("[orl][4]XNorm: ") for line in log)
    assert any(line.startswith("[orl][4]Accuracy-Flip: 0.") and "+-0." in line for line in log)
    assert any(line.startswith("[orl][4]Best-Threshold: ") for line in log)
    assert any(line.startswith("highest_acc: [0.") for line in log)


def test_the_checkpoint_alone_is_enough_to_evaluate_and_gives_the_same_numbers(run_folder: Path) -> None:
    done("facerec-eval", "ckpt=out/checkpoints/last.pt", "output_dir=ev", cwd=run_folder)
    trained = json.loads((run_folder / "out" / "results.json").read_text())["targets"]["orl"]
    evaluated = json.loads((run_folder / "ev" / "results.json").read_text())["targets"]["orl"]
    for key in ("accuracy", "accuracy_std", "best_threshold"):
        assert evaluated[key] == trained[key]
    assert evaluated["xnorm"] == pytest.approx(trained["xnorm"], rel=1e-5)


def test_the_same_command_goes_on_where_it_was(run_folder: Path, orl: Path) -> None:
    more = done(
        "facerec-train", *SMALL, f"data.root={orl}", "trainer.max_steps=5", "output_dir=out", cwd=run_folder
    )
    assert "resumed from" in more.stdout and "step 4" in more.stdout
    rows = map(json.loads, (run_folder / "out" / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4, 5, 5], "evaluations have rows of their own"


def test_a_run_in_two_parts_ends_with_the_bits_of_one_in_one_part(tmp_path: Path, orl: Path) -> None:
    for folder, steps in (("whole", 3), ("parts", 1), ("parts", 3)):
        arguments = [*SMALL, f"data.root={orl}", f"trainer.max_steps={steps}", "eval.figures=false"]
        done("facerec-train", *arguments, f"output_dir={folder}", cwd=tmp_path)
    whole, parts = (
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 3
    for part in ("backbone", "head"):
        for name, value in whole[part].items():
            assert value.equal(parts[part][name]), name
    for one, other in zip(*(s["optimizer"]["state"].values() for s in (whole, parts)), strict=True):
        assert one["momentum_buffer"].equal(other["momentum_buffer"])


def test_a_run_is_never_overwritten_unasked(run_folder: Path, orl: Path) -> None:
    run = command(
        "facerec-train", *SMALL, f"data.root={orl}", "output_dir=out", "trainer.resume=null", cwd=run_folder
    )
    assert "holds a run already" in failed(run)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_the_command(
    tmp_path: Path, orl: Path, number: signal.Signals, status: int
) -> None:
    program = Path(sys.executable).with_name("facerec-train")
    arguments = [*SMALL, f"data.root={orl}", "trainer.epochs=1000", "output_dir=out", "eval.targets=[]"]
    started = subprocess.Popen([str(program), *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(number)
    started.communicate(timeout=60)
    assert started.returncode == status
    assert checkpoint.load(tmp_path / "out" / "checkpoints" / "last.pt")["step"] >= 2


def test_a_sweep_leaves_a_folder_a_run_and_one_table(tmp_path: Path, orl: Path) -> None:
    run = done(
        "facerec-train",
        "-m",
        *SMALL,
        f"data.root={orl}",
        "trainer.max_steps=1",
        "eval.figures=false",
        "output_dir=sweep",
        "head.m=0.3,0.5",
        cwd=tmp_path,
    )
    table = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()
    columns = "accuracy,exact accuracy,AUC,EER,TAR @ FAR 1e-2,time,device-hours,state"
    assert table[0] == f"run,head.m,{columns}"
    assert sorted(row.split(",")[1] for row in table[1:]) == ["0.3", "0.5"]
    assert {row.split(",")[-1] for row in table[1:]} == {"finished"}
    assert "best by exact accuracy" in run.stdout
    assert "2 runs compared" in (tmp_path / "sweep" / "sweep.html").read_text()
    assert all((tmp_path / "sweep" / str(n) / "results.json").is_file() for n in range(2))
    assert "| head.m | accuracy" in run.stdout


def test_a_pack_of_the_published_layout_trains_under_its_name(tmp_path: Path, orl: Path) -> None:
    run = done(
        "facerec-train",
        "head=arcface",
        "data=ms1mv2",
        *SMALL,
        f"data.root={orl}",
        "eval.targets=[orl]",
        "trainer.max_steps=1",
        cwd=tmp_path,
    )
    assert "highest_acc" in run.stdout


def test_a_missing_data_set_says_what_works_now(tmp_path: Path) -> None:
    line = failed(command("facerec-train", "data=ms1mv2", cwd=tmp_path, FACEREC_DATA=str(tmp_path / "none")))
    assert "faces_emore" in line and "data=orl" in line


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path, orl: Path) -> None:
    (tmp_path / "file").touch()
    run = command("facerec-train", *SMALL, f"data.root={orl}", "output_dir=file/run", cwd=tmp_path)
    assert "file/run" in failed(run)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path, run_folder: Path) -> None:
    state = checkpoint.load(run_folder / "out" / "checkpoints" / "best.pt")
    state["config"]["backbone"] = {"name": "mbf", "embedding_size": 32}
    checkpoint.save(tmp_path / "other.pt", state)
    line = failed(command("facerec-eval", "ckpt=other.pt", cwd=tmp_path))
    assert "do not fit the backbone mbf" in line


def test_help_is_quick_to_come_and_does_not_load_torch(tmp_path: Path) -> None:
    for name in ("facerec-train", "facerec-eval", "facerec-export", "facerec-data"):
        run = succeeded(process(name, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1"))
        assert name in run.stdout
        assert "| torch\n" not in run.stderr and " torch\n" not in run.stderr
        assert not list(tmp_path.iterdir()), "asking for help leaves nothing behind"


def test_help_that_nobody_reads_to_the_end_complains_of_nothing(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("facerec-train")
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program} --help | head -1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.stderr == "" and run.returncode == 0


def test_an_export_gives_the_same_embeddings_elsewhere(run_folder: Path) -> None:
    done("facerec-export", "ckpt=out/checkpoints/best.pt", "format=safetensors", cwd=run_folder)
    from safetensors.torch import load_file

    weights = load_file(run_folder / "out" / "checkpoints" / "best.safetensors")
    state = checkpoint.load(run_folder / "out" / "checkpoints" / "best.pt")["backbone"]
    assert weights.keys() == state.keys()
    again = command("facerec-export", "ckpt=out/checkpoints/best.pt", "format=safetensors", cwd=run_folder)
    assert "force=true" in failed(again)


@pytest.mark.slow
def test_an_onnx_export_runs_with_any_batch_size(run_folder: Path) -> None:
    done("facerec-export", "ckpt=out/checkpoints/best.pt", "format=onnx", "out=face.onnx", cwd=run_folder)
    assert (run_folder / "face.onnx").stat().st_size > 3_000_000
