"""facerec-sweep: any runs in one table and page, seeds folded, the best marked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from facerec.cli import sweep as sweep_command
from facerec.errors import ConfigError, DamagedDataError, UserError
from facerec.reporting.runs import Runs, find_runs
from facerec.reporting.sweep import write_sweep
from facerec.reporting.sweep_page import heatmaps
from tests.browser import opened
from tests.test_report import visible


def entry(accuracy: float, **more: Any) -> dict[str, Any]:
    """An entry of results.json."""
    tar = {"1e-1": accuracy, "1e-2": accuracy / 2, "1e-3": None}
    numbers = {"accuracy": accuracy, "accuracy_exact": accuracy + 0.01, "auc": 0.9, "eer": 1 - accuracy}
    return numbers | {"tar_at_far": tar} | more


def made_run(folder: Path, targets: dict[str, Any], *overrides: str, **config: Any) -> Path:
    """The records of a run, as facerec-train leaves them; `config` by section, overrides as given."""
    (folder / ".hydra").mkdir(parents=True)
    settings = {
        "seed": 0,
        "output_dir": str(folder),
        "head": {"name": "arcface", "m": 0.5, "s": 64.0},
        "data": {"noise_seed": "${seed}"},  # follows, and does not keep runs apart
    } | config
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    rows = [{"step": step, "epoch": step / 10, "loss": 9 / step} for step in range(1, 6)]
    if targets:
        (folder / "results.json").write_text(json.dumps({"targets": targets}))
        mean = float(np.mean([one["accuracy"] for one in targets.values()]))
        rows.append({"step": 5, "epoch": 0.5, "mean/accuracy": mean, "mean/auc": 0.9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {"event": "start", "time": "2026-11-26 10:00:00+0000", "step": 0, "processes": 2}
    end = {"event": "end", "time": "2026-11-26 11:00:00+0000", "step": 5, "seconds": 3600.0}
    ends = [start, end | {"why": "finished" if targets else "failed"}]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ends))
    return folder


def grid(folder: Path) -> Path:
    """Margins × scales × two seeds, and a run that failed."""
    number = 0
    for m in (0.3, 0.5):
        for s in (32.0, 64.0):
            for seed in (0, 1):
                given = [f"head.m={m}", f"head.s={s:g}", f"seed={seed}"]
                accuracy = 0.8 + m / 10 + s / 1000 + seed / 100
                head = {"name": "arcface", "m": m, "s": s}
                made_run(folder / str(number), {"lfw": entry(accuracy)}, *given, seed=seed, head=head)
                number += 1
    made_run(
        folder / "8", {}, "head.m=0.9", "head.s=64", "seed=0", head={"name": "arcface", "m": 0.9, "s": 64.0}
    )
    return folder


def test_a_setting_that_follows_another_is_no_column_and_a_run_without_results_says_so(
    tmp_path: Path,
) -> None:
    for size in (32, 112):
        made_run(
            tmp_path / str(size),
            {"lfw": entry(0.8)} if size == 32 else {},
            data={"size": size},
            input={"size": size},
        )
    with (tmp_path / "112" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 0.5, "mean/accuracy": 0.9, "mean/auc": 0.9}\n')
    runs = Runs(find_runs([tmp_path]))
    assert list(runs.varied) == ["data.size"]
    assert runs.folds[-1].names == ["112"]
    assert runs.folds[-1].state == "failed, without results.json (logger=results)"


def test_seeds_are_folded_into_mean_deviation_and_interval(tmp_path: Path) -> None:
    runs = Runs(find_runs([grid(tmp_path)]))
    assert len(runs.folds) == 5 and list(runs.varied) == ["head.m", "head.s", "seed"]
    best = runs.best
    assert best is not None and best.names == ["6", "7"] and best.settings["head.m"] == "0.5"
    values = [0.8 + 0.05 + 0.064, 0.8 + 0.05 + 0.064 + 0.01]
    assert best.text("mean/accuracy") == f"{np.mean(values):.5f} ± {np.std(values, ddof=1):.5f}"
    low, high = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
    assert best.interval("mean/accuracy") == pytest.approx((low, high))
    assert runs.folds[-1].names == ["8"] and runs.folds[-1].state == "failed"
    assert (best.seconds, best.device_hours) == (7200, 4)


def test_a_fixed_seed_that_is_by_chance_the_seed_of_one_run_folds_as_well(tmp_path: Path) -> None:
    for seed in range(3):
        noise = {"noise_seed": 0}  # the default
        made_run(tmp_path / str(seed), {"lfw": entry(0.8)}, f"seed={seed}", seed=seed, data=noise)
    assert [one.names for one in Runs(find_runs([tmp_path])).folds] == [["0", "1", "2"]]


def test_runs_that_differ_in_more_than_the_seed_are_not_folded(tmp_path: Path) -> None:
    made_run(tmp_path / "a", {"lfw": entry(0.8)}, "seed=1", seed=1, optimizer={"name": "sgd", "lr": 0.1})
    made_run(tmp_path / "b", {"lfw": entry(0.8)}, "seed=2", seed=2, optimizer={"name": "sgd", "lr": 0.2})
    runs = Runs(find_runs([tmp_path]))
    assert len(runs.folds) == 2 and list(runs.varied) == ["seed", "optimizer.lr"]


def test_a_list_is_shown_as_it_was_typed_and_not_with_all_that_it_stands_for(tmp_path: Path) -> None:
    for name in ("B", "C"):
        sources = [{"kind": "folder", "root": one, "name": None, "options": {}} for one in ("A", name)]
        given = ["data=mix", f"data.sources=[A,{name}]"]
        made_run(tmp_path / name, {"lfw": entry(0.8)}, *given, data={"kind": "mix", "sources": sources})
    runs = Runs(find_runs([tmp_path]))
    assert {one.settings["data.sources"] for one in runs.folds} == {"[A,B]", "[A,C]"}


def test_the_mean_is_over_the_same_sets_in_each_run(tmp_path: Path) -> None:
    made_run(tmp_path / "0", {"lfw": entry(0.9), "cfp": entry(0.7)}, "head.m=0.3", head={"m": 0.3})
    made_run(tmp_path / "1", {"lfw": entry(0.95)}, "head.m=0.4", head={"m": 0.4})
    made_run(tmp_path / "2", {}, "head.m=0.5", head={"m": 0.5})
    runs = Runs(find_runs([tmp_path]))
    columns = ["lfw/accuracy", "cfp/accuracy", "mean/accuracy"]
    assert [[one.names[0], *(one.text(column) for column in columns)] for one in runs.folds] == [
        ["0", "0.90000", "0.70000", "0.80000"],
        ["1", "0.95000", "–", "–"],
        ["2", "–", "–", "–"],
    ]


def test_runs_are_judged_by_the_number_that_suits_all_their_sets_or_the_one_asked_for(tmp_path: Path) -> None:
    made_run(tmp_path / "0", {"lfw": entry(0.9, auc=0.7, judged_by="auc")}, "seed=0", head={"m": 0.3})
    made_run(tmp_path / "1", {"lfw": entry(0.8, auc=0.8, judged_by="accuracy")}, "seed=1", head={"m": 0.4})
    records = find_runs([tmp_path])
    for by, best in ((None, "1"), ("accuracy", "0"), ("auc", "1"), ("eer", "0"), ("tar_at_far", "0")):
        chosen = Runs(records, by).best
        assert chosen is not None and chosen.names == [best], by
    assert Runs(records).columns["mean/tar_at_far"] == "TAR @ FAR 1e-2", "the smallest that all support"
    with pytest.raises(ConfigError, match=r"--by=loss: must be one of accuracy"):
        _ = Runs(records, "loss").best


def test_a_heatmap_is_there_for_each_two_settings_and_the_chosen_ones_come_first(tmp_path: Path) -> None:
    runs = Runs(find_runs([grid(tmp_path)]))
    (one,) = heatmaps(runs)
    assert {one.x, one.y} == {"head.m", "head.s"} and one.columns == ["0.3", "0.5", "0.9"]
    (name, cells), _ = one.rows
    mean = 0.8 + 0.03 + 0.032 + 0.005
    assert name == "32.0" and cells[0] is not None and cells[0][0] == f"{mean:.5f}" and cells[2] is None
    assert [cell[2] for _, row in one.rows for cell in row if cell] == [False, False, False, True]
    assert heatmaps(runs, ["head.s", "head.m"])
    with pytest.raises(ConfigError, match=r"--heatmap=head.m,lr: must be two of those that vary"):
        heatmaps(runs, ["head.m", "lr"])


def test_the_command_takes_any_runs_and_writes_a_page_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "first")
    made_run(
        tmp_path / "second" / "x", {"lfw": entry(0.99)}, "head=cosface", head={"name": "cosface", "m": 0.4}
    )
    arguments = [str(tmp_path / "first" / "0"), str(tmp_path / "second"), "--out", str(tmp_path / "all.html")]
    assert sweep_command.run(arguments) == 0
    said = capsys.readouterr().out
    assert "second/x" in said and "best by accuracy: run second/x" in said
    text = visible((tmp_path / "all.html").read_text())
    assert "2 runs compared" in text and "Best by accuracy: run second/x (head.m=" in text
    assert (tmp_path / "all.csv").read_text().startswith("run,head.m")


def test_names_of_runs_do_not_command_the_terminal(tmp_path: Path) -> None:
    for name, accuracy in (("\x1b[31mred\n", 0.9), ("plain", 0.8)):
        made_run(tmp_path / name, {"lfw": entry(accuracy)}, f"seed={accuracy}", head={"m": accuracy})
    said = write_sweep([tmp_path], tmp_path / "sweep.html")
    assert "\x1b" not in said and r"best by accuracy: run \x1b[31mred\n" in said


def test_folders_without_runs_are_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        find_runs([tmp_path / "none"])
    (tmp_path / "eval" / ".hydra").mkdir(parents=True)
    (tmp_path / "eval" / ".hydra" / "config.yaml").write_text("ckpt: x\n")
    (tmp_path / "eval" / ".hydra" / "overrides.yaml").write_text("[]\n")
    with pytest.raises(UserError, match="holds no run of facerec-train"):
        find_runs([tmp_path])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": "high"}\n', r"metrics\.jsonl, line 1: is no such row"),
        ("metrics.jsonl", '{"step": 1}\n{"step"\n', r"metrics\.jsonl, line 2: is no JSON"),
        ("history.jsonl", '{"event": "start"}\n', r"history\.jsonl, line 1: is no such row"),
        ("history.jsonl", "[]\n", r"history\.jsonl, line 1: is no object"),
        ("results.json", "[1]", r"results\.json: is no object"),
        (
            "results.json",
            '{"targets": {"lfw": {"accuracy": "good"}}}',
            r"results\.json: the numbers of lfw are none",
        ),
        ("results.json", '{"targets": [1]}', r"results\.json: its targets are no results"),
        (".hydra/config.yaml", "- 1\n", r"config\.yaml: holds no settings"),
    ],
)
def test_a_changed_record_of_a_run_is_refused_by_name(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    folder = grid(tmp_path)
    (folder / "3" / name).write_text(text)
    with pytest.raises(DamagedDataError, match=said):
        write_sweep([folder], folder / "sweep.html")
    assert not (folder / "sweep.html").exists()


def test_numbers_that_json_has_not_are_left_out_and_a_far_that_no_set_supports_is_refused(
    tmp_path: Path,
) -> None:
    folder = grid(tmp_path)
    with (folder / "3" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": NaN, "lr": Infinity, "accuracy": 1e999}\n')
    assert "best by accuracy" in write_sweep([folder], folder / "sweep.html")
    made_run(tmp_path / "few", {"lfw": entry(0.8, tar_at_far={})}, "seed=1", head={"m": 0.3})
    with pytest.raises(ConfigError, match="--by=tar_at_far: there is no FAR that all sets"):
        write_sweep([folder, tmp_path / "few"], folder / "sweep.html", by="tar_at_far")


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_alive_in_a_browser(browser: Any, tmp_path: Path, width: int) -> None:
    folder = grid(tmp_path)
    for path in folder.glob("*/.hydra/config.yaml"):  # a third setting, for three heatmaps
        other = {"lr": 0.1 if int(path.parts[-3]) % 4 < 2 else 0.2}
        path.write_text(path.read_text() + yaml.safe_dump({"optimizer": other}))
    write_sweep([folder], folder / "sweep.html")
    with opened(browser, folder / "sweep.html", width) as (page, complaints):
        page.evaluate("drawn")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        wide = page.locator(".wide").first
        assert wide.evaluate("one => one.scrollWidth <= one.clientWidth"), "nothing is cut off"
        if width > 900:
            heads = page.locator(".runs thead th").all_inner_texts()
            assert heads[:3] == ["Run", "head.m", "head.s"] and "Exact accuracy" in heads
            assert page.locator(".runs .unbroken").inner_text() == "1e-2", "no line breaks at its hyphen"
        assert page.locator(".heat:visible").count() == 1
        page.locator("#axes").select_option("1")
        assert page.locator(".heat:visible").get_attribute("id") == "heat-1"
        with page.expect_download() as saved:
            page.locator("[data-chart=loss] [title=Save]").click()
        assert saved.value.suggested_filename == "loss.svg"
        assert Path(saved.value.path()).read_text().count("<path") > 9
        lines = page.locator("[data-chart=loss] .legend li:visible")
        assert lines.count() == 9
        page.locator(".filters input").first.click()
        assert lines.count() == 8 and complaints == []
        assert re.match(r"\d+ runs compared", page.locator("h1").inner_text())
