"""A run beside a reference curve: what counts as clearly off, and what the log and the page say."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from facerec.cli.mistakes import config_folder
from facerec.errors import FacerecError
from facerec.packs.verification import write_verification
from facerec.reporting.reference import Compared, Reference, open_reference
from tests.foreign_files import png
from tests.test_cli_train import command, done, failed
from tests.test_recipes import RECIPES
from tests.test_records import RUN
from tests.tiny_run import tiny_trainer

PUBLISHED = yaml.safe_load((config_folder() / "references.yaml").read_text())
CURVE = [0.5, 0.9, 0.94, 0.97, 0.975, 0.986]


def reference(values: Sequence[float] = CURVE, key: str = "lfw/accuracy", **more: Any) -> Reference:
    rows = [{"step": 100 * (1 + at), key: value} for at, value in enumerate(values)]
    return Reference("r", "somewhere", rows, **more)


def said_of(
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    given: Reference,
    *,
    loss: float = 5.0,
    **accuracies: float,
) -> logging.LogRecord:
    """The line after an evaluation at step 400 of a run with these numbers, 7 images a step."""
    trainer = tiny_trainer(tmp_path)
    compared = Compared(given, tmp_path)
    compared.started(trainer)
    for step in range(10, 401, 10):
        compared.logged(trainer, {"step": step, "loss": loss})
    trainer.position.step = 400
    results: Any = {name: SimpleNamespace(accuracy=value, pairs=6000) for name, value in accuracies.items()}
    with caplog.at_level(logging.INFO):
        caplog.clear()
        compared.evaluated(trainer, results)
    return caplog.records[-1]


def test_a_number_within_four_deviations_of_the_curve_is_not_off(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    residuals = [CURVE[i] - (CURVE[i - 1] + CURVE[i + 1]) / 2 for i in range(1, 5)]
    scatter = 1.4826 * float(np.median(np.abs(residuals))) / math.sqrt(1.5)
    room = 4 * math.sqrt(2 * (scatter**2 + 0.97 * 0.03 / 6000))
    assert reference().deviation("lfw/accuracy") == pytest.approx(scatter)
    for value, off in ((0.97 - 0.99 * room, False), (0.97 - 1.01 * room, True), (0.97 + 1.01 * room, True)):
        record = said_of(caplog, tmp_path, reference(), lfw=value)
        assert ("clearly off" in record.message) is off, record.message
        assert (record.levelno == logging.WARNING) is off
        assert "r at step 400: " in record.message and f"lfw {value:.5f} (there 0.97000" in record.message


def test_between_two_points_anything_between_their_values_is_expected() -> None:
    curve = reference()
    assert curve.expected("lfw/accuracy", 250, 250) == (0.9, 0.94)
    assert curve.expected("lfw/accuracy", 120, 310) == (0.5, 0.97)
    assert curve.expected("lfw/accuracy", 600, 610) == (0.986, 0.986), "an end may be passed by 2.5 %"
    assert curve.expected("lfw/accuracy", 700, 700) is None
    assert curve.expected("lfw/accuracy", 50, 50) is None
    assert curve.expected("agedb_30/accuracy", 300, 300) is None


def test_the_causes_fit_what_is_off(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    both = reference()
    rows = [row | {"loss": 5.0 + 0.01 * (row["step"] % 300)} for row in both.rows]
    both = Reference("r", "somewhere", rows, settings={"seed": 3, "head.name": "cosface", "eval.flip": False})
    said = said_of(caplog, tmp_path, both, lfw=0.5).message
    assert "the loss agrees, so the evaluation differs" in said and "BGR for RGB" in said
    assert said.endswith("; this run has head.name=arcface (there cosface)")
    assert (
        "the accuracy agrees, so the loss is another one"
        in said_of(caplog, tmp_path, both, lfw=0.97, loss=30.0).message
    )
    everything = said_of(caplog, tmp_path, both, lfw=0.5, loss=30.0).message
    for cause in (
        "learning rate",
        "labels shuffled",
        "BGR for RGB",
        "weight decay",
        "mirroring",
        "input.mean",
    ):
        assert cause in everything
    assert "within 4 deviations" in said_of(caplog, tmp_path, both, lfw=0.97).message


def test_runs_of_other_batches_are_compared_at_equal_numbers_of_images(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    twice = reference(images_per_step=14)
    assert [row["step"] for row in twice.at_steps_of(7).rows] == [200, 400, 600, 800, 1000, 1200]
    with caplog.at_level(logging.INFO):
        record = said_of(caplog, tmp_path, twice, lfw=0.4)
    assert "(there 0.90000 ±" in record.message and "7 images a step (there 14)" in record.message


def test_sets_that_the_curve_does_not_know_are_said_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    said_of(caplog, tmp_path, reference(), lfw=0.97, calfw=0.9)
    assert "has no accuracy on calfw (it has lfw); compared: lfw" in caplog.text
    said_of(caplog, tmp_path, reference(), cfp_fp=0.97)
    assert "compared: the loss alone, if it has one" in caplog.text
    assert "the curve has nothing at this step" in caplog.records[-1].message


def test_a_run_without_evaluations_is_compared_once_at_its_end(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    flat = Reference("r", "somewhere", [{"step": step, "loss": 9.0} for step in range(1, 20)])
    trainer = tiny_trainer(tmp_path, reporters=[Compared(flat, tmp_path)])
    with caplog.at_level(logging.INFO):
        trainer.fit()
    said = [record.message for record in caplog.records if "r at step" in record.message]
    assert len(said) == 1 and "at step 15: clearly off: loss" in said[0] and "(there 9 ± 0)" in said[0]


def test_published_curves_are_those_of_recipes() -> None:
    for name, entry in PUBLISHED.items():
        assert name in RECIPES
        recipe = (config_folder() / "experiment" / f"{name}.yaml").read_text()
        assert f"reference: {name}" in recipe
        steps = list(entry["curve"])
        assert steps == sorted(steps) and entry["source"] and entry["images_per_step"]
        assert all(len(values) == len(entry["columns"]) for values in entry["curve"].values())
        curve = open_reference(name, [config_folder()])
        assert curve.rows[0]["step"] == steps[0]
    sface = open_reference("sface_ms1mv2_ir50", [config_folder()])
    assert sface.rows == [
        {"step": 60000}
        | {
            f"{name}/accuracy": value
            for name, value in zip(
                ("lfw", "calfw", "cplfw", "cfp_fp", "agedb_30"),
                (0.98867, 0.92367, 0.85033, 0.91257, 0.92467),
                strict=True,
            )
        }
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sface_ms1m_ir50", "is no published curve and no run's folder; did you mean sface_ms1mv2_ir50?"),
        (".", "is no run's folder"),
        ("''", "trainer.reference=: must be a path, or null for none"),
    ],
)
def test_a_wrong_reference_is_one_line_before_any_data_is_touched(
    tmp_path: Path, given: str, message: str
) -> None:
    assert message in failed(
        command("facerec-train", "data=casia", f"trainer.reference={given}", cwd=tmp_path)
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("garbage\n", "metrics.jsonl, line 1: is no JSON"),
        ('{"step": 1}\n[1, 2]\n', "metrics.jsonl, line 2: is no object"),
        ('{"loss": 1}\n', "metrics.jsonl, line 1: is no such row"),
        ('{"step": 1, "lfw/accuracy": "x"}\n', "metrics.jsonl, line 1: is no such row"),
    ],
)
def test_damaged_rows_of_a_reference_are_named(tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trainer: {batch_size: 8}\n")
    (tmp_path / "metrics.jsonl").write_text(rows)
    with pytest.raises(FacerecError, match=re.escape(said)):
        open_reference(str(tmp_path), [])


def test_a_reference_whose_settings_are_no_numbers_is_compared_step_by_step(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    for text, images in (
        ("trainer: 5", None),
        ("trainer: {batch_size: a}", None),
        ("trainer: {batch_size: 8}", 8),
    ):
        (tmp_path / ".hydra" / "config.yaml").write_text(text)
        assert open_reference(str(tmp_path), []).images_per_step == images


def test_a_run_is_laid_over_an_earlier_one(tmp_path: Path) -> None:
    images = [png(image) for image in np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8)]
    write_verification(tmp_path / "made.bin", images, np.arange(20) % 2 == 0)
    given = [one for one in RUN if not one.startswith(("eval.targets", "output_dir"))]
    given += [
        "eval.targets=[made.bin]",
        "eval.root=.",
        "eval.every_steps=3",
        "eval.bootstrap=0",
        "eval.figures=false",
        "logger=[console,metrics,report]",
    ]
    short = [*given[:-1], "logger=[console,metrics]"]
    done("facerec-train", *short, "output_dir=a", cwd=tmp_path)
    again = command("facerec-train", *short, "output_dir=b", "trainer.reference=a", cwd=tmp_path)
    assert "reference  a: the run in a\n" in again.stdout
    assert len(re.findall(r"reference  a at step [36]: .*within 4 deviations", again.stdout)) == 2
    assert "clearly off" not in again.stdout + again.stderr

    metrics = tmp_path / "a" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text(
        "".join(json.dumps(row | ({"loss": 0.1} if "loss" in row else {})) + "\n" for row in rows)
    )
    other = command(
        "facerec-train", *given, "output_dir=c", "trainer.reference=a", "optimizer.lr=0.02", cwd=tmp_path
    )
    line = next(
        line for line in (other.stdout + other.stderr).splitlines() if "at step 6: clearly off: loss" in line
    )
    assert "this run has optimizer.lr=0.02 (there 0.01)" in line

    html = (tmp_path / "c" / "report.html").read_text()
    assert "Dashed curves: a, the run in a." in html
    assert re.search(r'NumeralTickFormatter","id":"\w+"\},"axis_label":"step"', html), "not 1.000e+5"
    assert "Loss, reference" in html and "made, reference" in html
