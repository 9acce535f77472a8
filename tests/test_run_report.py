"""What a run leaves to look back on: report.html, rows of evaluations, starts and ends, and `--from RUN`."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facerec.cli.config_loader import ConfigLoader
from facerec.cli.from_run import from_run
from facerec.errors import FacerecError
from facerec.images.decode import decode
from facerec.images.preprocessing import Preprocessing
from facerec.packs.verification import VerificationSet
from facerec.reporting.history import History
from facerec.reporting.loggers.base import Figures, numbers_of
from facerec.reporting.loggers.metrics_file import MetricsFile
from facerec.reporting.loggers.report import RunReport
from facerec.reporting.record import RunRecord
from facerec.reporting.run_charts import POINTS, charts_of_run, joined
from tests.browser import opened
from tests.test_cli_train import command, done, failed
from tests.test_records import CLOCK, RUN
from tests.test_report import elements, visible
from tests.test_training import At, interrupt
from tests.tiny_run import made_set, tiny_trainer


def tiny_run(
    folder: Path, *, stop: int | None = None, channels: Any = "rgb", **settings: Any
) -> list[np.ndarray]:
    """Train or resume a tiny run with its records, as facerec-train does; returns what the backbone got."""
    folder.mkdir(exist_ok=True)
    figures = Figures()
    loggers = [kind(folder=folder, figures=figures) for kind in (MetricsFile, RunReport)]
    trainer = tiny_trainer(
        folder, **{"eval_bootstrap": 20, **settings}, reporters=[History(folder), *loggers]
    )
    trainer.input = Preprocessing(size=16, channels=channels)
    trainer.verification_sets = [made_set(), made_set("other")]
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text("seed: 3\nhead: {name: arcface, note: <b>}\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=3\n")
    if (folder / "checkpoints" / "last.pt").is_file():
        trainer.resume(folder / "checkpoints" / "last.pt")
    given: list[np.ndarray] = []
    trainer.embed.register_forward_pre_hook(
        lambda module, inputs: given.append(inputs[0].numpy().copy()) if module.training else None
    )

    if stop is not None:
        trainer.reporters.append(At(stop, interrupt))
    trainer.fit()
    return given


@pytest.fixture(scope="module")
def two_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 15 steps, interrupted at the seventh and resumed with another learning rate."""
    folder = tmp_path_factory.mktemp("two")
    tiny_run(folder, stop=7)
    tiny_run(folder, optimizer_lr=0.05)
    return folder


def test_the_chart_of_one_logged_step_has_whole_steps_around_it() -> None:
    chart = charts_of_run([{"step": 20, "loss": 9.3}], [])[0]
    ranges = [one["attributes"] for one in found_in(chart.figure, "Range1d")]
    assert [19, 21] in [[one["start"], one["end"]] for one in ranges]


def found_in(value: Any, name: str) -> list[dict[str, Any]]:
    """All objects of Bokeh's JSON of that name, at any depth."""
    if isinstance(value, list):
        return [one for part in value for one in found_in(part, name)]
    if not isinstance(value, dict):
        return []
    return [value] * (value.get("name") == name) + found_in(list(value.values()), name)


def test_each_evaluation_is_a_row_with_the_numbers_of_results_and_their_means(two_parts: Path) -> None:
    record = RunRecord(two_parts)
    assert [row["step"] for row in record.evaluations] == [5, 10, 15]
    assert [row["step"] for row in record.steps] == list(range(1, 16))
    last = record.evaluations[-1]
    accuracies = [last[f"{name}/accuracy"] for name in ("made", "other")]
    assert last["mean/accuracy"] == sum(accuracies) / 2
    assert {"made/auc", "made/eer", "made/accuracy_exact", "made/tar_at_far_1e-1"} <= last.keys()
    assert "made/tar_at_far_1e-3" not in last, "twenty impostor pairs do not support it"


def test_numbers_that_one_set_lacks_have_no_mean(two_parts: Path) -> None:
    trainer = tiny_trainer(two_parts.parent / "unused")
    few = VerificationSet("few", made_set().images, np.arange(80) % 40, np.ones(40, bool))
    from facerec.evaluation.protocols.verification import evaluate_targets

    numbers = numbers_of(evaluate_targets(trainer.model(), [made_set(), few], trainer.eval_settings))
    assert "made/auc" in numbers and "few/auc" not in numbers and "mean/auc" not in numbers


def test_a_finished_run_that_is_started_again_adds_nothing(two_parts: Path) -> None:
    names = ("metrics.jsonl", "history.jsonl")
    before = [(two_parts / name).read_bytes() for name in names]
    tiny_run(two_parts, optimizer_lr=0.05)
    assert [(two_parts / name).read_bytes() for name in names] == before


def test_starts_say_what_changed_and_ends_how_long_it_took(two_parts: Path) -> None:
    first, stopped, second, ended = RunRecord(two_parts).history
    assert (first["step"], stopped["step"], second["step"], ended["step"]) == (0, 7, 7, 15)
    assert (stopped["why"], ended["why"]) == ("signal 15", "finished")
    assert (
        first["versions"]["torch"] == torch.__version__.partition("+")[0] and len(first["fingerprint"]) == 32
    )
    assert RunRecord(two_parts).seconds == pytest.approx(stopped["seconds"] + ended["seconds"])


def test_the_page_shows_the_run_from_its_first_batch_to_its_last_evaluation(two_parts: Path) -> None:
    html = (two_parts / "report.html").read_text()
    text = visible(html)
    charts = re.findall(r'data-chart="([\w-]+)"', html)
    assert charts[:5] == ["loss", "lr", "accuracy", "cosines", "grad_norm"]
    assert {"sets-accuracy", "sets-auc", "roc"} <= set(charts)
    record = RunRecord(two_parts)
    for said in ("15 steps, 3 epochs", "Last evaluation", "signal 15 at step 7", "finished at step 15"):
        assert said in text, said
    assert f"{record.evaluations[-1]['made/accuracy']:.5f}" in text
    assert record.starts[0]["fingerprint"] in text and "torch" in text and "seed: 3" in text
    assert "note: &lt;b&gt;" in elements(html), "configuration is text"


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_the_first_batch_is_what_the_network_gets(tmp_path: Path, channels: str) -> None:
    (first, *_) = tiny_run(tmp_path / "run", channels=channels, trainer_epochs=1)
    html = (tmp_path / "run" / "report.html").read_text()
    faces = html.partition('<ul class="faces">')[2].partition("</ul>")[0]
    shown = [decode(base64.b64decode(one), 16) for one in re.findall(r"base64,([^\"]+)", faces)]
    expected = (first * 127.5 + 127.5).transpose(0, 2, 3, 1)
    assert len(shown) == len(expected) == 7
    assert np.abs(np.mean(shown, axis=(1, 2)) - expected.mean(axis=(1, 2))).max() < 4  # JPEG
    assert ("takes blue first" in html) == (channels == "bgr")


def test_many_points_are_drawn_as_means_of_neighbours() -> None:
    points = np.stack([np.arange(50_000.0), np.sin(np.arange(50_000) / 5000)])
    few = joined(points)
    assert few.shape == (2, POINTS)
    assert few[1] == pytest.approx([points[1, 50 * i : 50 * i + 50].mean() for i in range(POINTS)])


def test_the_page_is_alive_in_a_browser(browser: Any, two_parts: Path) -> None:
    with opened(browser, two_parts / "report.html", 390) as (page, complaints):
        page.evaluate("drawn")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        page.locator("[data-chart=loss] svg path").first.wait_for(state="attached")
        page.locator("summary").click()
        assert "arcface" in page.locator("pre").inner_text() and complaints == []


# -- --from RUN ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    done("facerec-train", *RUN, "trainer.max_steps=2", "head=cosface", "head.m=0.3", cwd=folder)
    return folder


def losses(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def test_a_run_is_repeated_from_its_record_to_the_bit_in_a_folder_of_its_own(recorded: Path) -> None:
    done("facerec-train", "--from", "out", "output_dir=again", cwd=recorded)
    assert losses(recorded / "again") == losses(recorded / "out")
    assert "--from" not in (recorded / "again" / ".hydra" / "overrides.yaml").read_text()


def settings_of(folder: Path, *arguments: str) -> str:
    """The configuration that a command would use."""
    shown = done("facerec-train", *arguments, "--cfg", "job", cwd=folder)
    return shown.stdout


def test_what_is_given_anew_counts_more_than_the_record_and_the_record_more_than_the_files(
    recorded: Path, tmp_path: Path
) -> None:
    hydra = tmp_path / "old" / ".hydra"
    hydra.mkdir(parents=True)
    overrides = (recorded / "out" / ".hydra" / "overrides.yaml").read_text()
    config = (recorded / "out" / ".hydra" / "config.yaml").read_text()
    assert "momentum: 0.9" in config
    (hydra / "overrides.yaml").write_text(overrides)
    (hydra / "config.yaml").write_text(config.replace("momentum: 0.9", "momentum: 0.8"))
    shown = settings_of(tmp_path, "--from=old", "head.m=0.4", "data.size=48")
    for said in ("momentum: 0.8", "m: 0.4", "name: cosface", "size: 48", "identities: 6"):
        assert said in shown, said
    other = settings_of(tmp_path, "--from", "old/checkpoints", "head=arcface", "seed=7")
    assert "name: arcface" in other and "m: 0.5" in other and "seed: 7" in other and "momentum: 0.8" in other


def test_a_record_that_cannot_be_repeated_is_a_line(recorded: Path, tmp_path: Path) -> None:
    assert "is no run's folder" in failed(command("facerec-train", "--from", "here", cwd=tmp_path))
    assert "--from: needs the folder" in failed(command("facerec-train", "--from", cwd=tmp_path))
    hydra = tmp_path / "old" / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text("plugins: [os_breaker]\nseed: 0\n")
    said = failed(command("facerec-train", "--from", "old", cwd=tmp_path))
    assert "was made with plugins, which run code; give them: plugins=[os_breaker]" in said
    (hydra / "config.yaml").write_text("seed: 0\nhead: {gone: 1}\n")
    said = failed(command("facerec-train", "--from", "old", cwd=tmp_path))
    assert "head.gone=1: old has it, but it exists no more" in said
    assert ConfigLoader.repeated is None, "what is composed next in this process would get the record, too"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n"
    for last, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.yaml", "3", "config.yaml: "),
        ("config.yaml", "- seed\n", "config.yaml: holds no settings"),
        ("config.yaml", "seed: [0\nhead: }", "config.yaml: while parsing"),
        (
            "config.yaml",
            "seed: !!python/object/apply:os.getpid []\n",
            "config.yaml: could not determine a constructor",
        ),
        ("config.yaml", "seed: ${a\n", "config.yaml: "),
        ("config.yaml", "seed: \x00\n", "config.yaml: "),
        ("config.yaml", BOMB, "aliases (*name) repeating each other"),
        ("overrides.yaml", "{seed: 1}", "overrides.yaml: holds no list of settings"),
        (
            "overrides.yaml",
            "[--config-dir=/tmp]",
            "its record gives --config-dir=/tmp, which is no setting of a run",
        ),
        ("overrides.yaml", "['hydra.run.dir=/tmp']", "its record gives hydra.run.dir=/tmp"),
    ],
)
def test_a_record_that_was_changed_is_refused_by_name(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    folder = tmp_path / ".hydra"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "overrides.yaml").write_text("[]\n")
    (folder / name).write_text(text)
    with pytest.raises(FacerecError, match=re.escape(said)):
        from_run(["--from", str(tmp_path)])
