"""One table at the end of a multirun sweep: the settings that vary, and each run's accuracy per target."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from facerec.files import csv_lines, replacing
from facerec.reporting import run_folder

log = logging.getLogger(__name__)


class SweepTable(Callback):
    """Hydra callback that reads the folders of a sweep when its last run has ended.

    It reads files and not return values, so that runs of other processes and machines count as well.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Give a run its folder."""
        run_folder.prepare(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Give a sweep its folder, and remember it for `write_table` should Hydra end without
        `on_multirun_end`.
        """
        run_folder.prepare(config, "sweep")
        _under_way.append(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, and write it as sweep.csv and sweep.md into the sweep's folder."""
        write_table()


_under_way: list[Path] = []


def write_table() -> None:
    """Write and print the table of the sweep under way, if there is one, once.

    Hydra leaves `on_multirun_end` out where a run that a launcher has started elsewhere has failed.
    """
    folder = _under_way.pop() if _under_way else None
    if folder is None or not folder.is_dir() or run_folder.discard(folder.absolute()):
        return
    header, rows = read_sweep(folder)
    if not rows:
        return
    text = as_markdown(header, rows)
    with replacing(folder / "sweep.md") as file:
        file.write(text.encode())
    with replacing(folder / "sweep.csv") as file:
        file.write(csv_lines([header, *rows]))
    print(f"\n{text}\n{folder / 'sweep.csv'}")


def read_sweep(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: run, the varied settings, accuracy per target, mean; best mean first.

    A run without results.json (it failed, or was interrupted) stands at the end with dashes, as does the mean
    of one that lacks a target which others have.
    """
    runs = []
    for run in sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name)):
        overrides = run / ".hydra" / "overrides.yaml"
        if overrides.is_file():
            items = [str(item).lstrip("+").partition("=") for item in OmegaConf.load(overrides)]
            given = {key: value for key, _, value in items}
            results = run / "results.json"
            written = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
            targets = written.get("targets", {})  # a comparison of models has a table of its own
            accuracy = {name: one["accuracy"] for name, one in targets.items() if "accuracy" in one}
            runs.append((run.name, given, accuracy))
    names = list(dict.fromkeys(name for _, given, _ in runs for name in given))
    varied = [name for name in names if len({given.get(name) for _, given, _ in runs}) > 1]
    targets = list(dict.fromkeys(target for _, _, accuracy in runs for target in accuracy))
    rows = []
    for run_name, given, accuracy in runs:
        complete = bool(targets) and len(accuracy) == len(targets)  # a mean of others cannot be compared
        mean = sum(accuracy.values()) / len(accuracy) if complete else None
        cells = [f"{accuracy[target]:.5f}" if target in accuracy else "–" for target in targets]
        settings = [given.get(name, "–") for name in varied]
        row = [run_name, *settings, *cells, "–" if mean is None else f"{mean:.5f}"]
        rows.append((-1.0 if mean is None else mean, row))
    rows.sort(key=lambda pair: -pair[0])
    return ["run", *varied, *targets, "mean"], [row for _, row in rows]


def as_markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up, so that it reads well as plain text too."""
    first, *others = [f"| {line} |" for line in aligned([header, *rows], " | ")]
    rule = "".join("|" if sign == "|" else "-" for sign in first)
    return "\n".join([first, rule, *others]) + "\n"


def aligned(rows: Sequence[Sequence[str]], between: str = "  ") -> list[str]:
    """Lines of cells, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
