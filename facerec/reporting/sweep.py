"""sweep.html, sweep.csv and a table of runs: at the end of a multirun sweep, or of any runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from facerec.errors import UserError, printable
from facerec.files import csv_lines, write_bytes
from facerec.reporting import run_folder
from facerec.reporting.text_table import as_markdown

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
        """Print the table, and write sweep.html and sweep.csv into the sweep's folder."""
        write_table()


_under_way: list[Path] = []


def write_table() -> None:
    """Write and print the table of the sweep under way, if there is one, once.

    Hydra leaves `on_multirun_end` out where a run that a launcher has started elsewhere has failed.
    """
    folder = _under_way.pop() if _under_way else None
    if folder is None or not folder.is_dir() or run_folder.discard(folder.absolute()):
        return
    try:
        print(f"\n{write_sweep([folder], folder / 'sweep.html')}", end="")
    except UserError as error:  # all runs were refused before they had a folder
        log.debug("no table: %s", error)


def write_sweep(
    folders: Sequence[Path], page: Path, *, by: str | None = None, axes: Sequence[str] = ()
) -> str:
    """Compare the runs in `folders`: write the page and a CSV beside it, and return the table as text.

    Args:
        by: the number to judge by; None: the one that suits all.
        axes: two settings that the heatmap shows first.

    Raises:
        UserError: there are no runs, or no such number or settings.
        StorageError: a file could not be written.
    """
    from facerec.reporting.runs import Runs, find_runs  # SciPy takes a moment
    from facerec.reporting.sweep_page import sweep_html

    runs = Runs(find_runs(folders), by)
    html = sweep_html(runs, page.absolute().parent.name, axes)
    header = ["run", *runs.varied, *runs.columns.values(), "time", "device-hours", "state"]
    rows = []
    for fold in runs.folds:
        numbers = [fold.text(column) for column in runs.columns]
        ends = [fold.time, fold.cost, fold.state]
        rows.append([",".join(fold.names), *fold.settings.values(), *numbers, *ends])
    table = page.with_suffix(".csv")
    write_bytes(page, html.encode())
    write_bytes(table, csv_lines([header, *rows]))
    best = ""
    if runs.best is not None:
        best = f"best by {runs.columns[runs.column]}: run {printable(','.join(runs.best.names))}\n"
    return f"{as_markdown(header, rows)}{best}{page}\n{table}\n"
