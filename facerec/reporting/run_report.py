"""report.html of a training run: what it was, how it went and what it has come to, on one page."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from facerec.errors import counted, duration
from facerec.images.preprocessing import Preprocessing
from facerec.reporting.charts import charts_of
from facerec.reporting.evaluated import Evaluated
from facerec.reporting.pair_images import data_uri
from facerec.reporting.record import RunRecord
from facerec.reporting.reference import reference_beside
from facerec.reporting.report import page, values_of
from facerec.reporting.run_charts import charts_of_run

_CHANNELS = {
    "rgb": "Faces that look blue come from files with red and blue exchanged",
    "bgr": "This network takes blue first (input.channels=bgr), so that faces look blue here and must",
}


def run_html(
    record: RunRecord,
    evaluated: Evaluated | None,
    batch_BHWC: np.ndarray | None,
    input: Preprocessing,
    *,
    figures: bool = True,
) -> str:
    """The page as text, of the run's records.

    Args:
        evaluated: the last evaluation; None: not known here, then only its rows of metrics.jsonl are shown.
        batch_BHWC: the first batch, uint8, as `Figures.first_batch` gives it.
        input: the run's preprocessing.
        figures: images of pairs shall be on the page.
    """
    models = [] if evaluated is None else [evaluated]
    values = values_of(models, {}, figures=figures)
    batch = [] if batch_BHWC is None else [data_uri(image_HWC) for image_HWC in batch_BHWC]
    config = record.config
    reference = reference_beside(record.folder, config)
    dashed = [] if reference is None else [f"Dashed curves: {reference.name}, {reference.source}."]
    values |= {
        "title": record.folder.absolute().name,
        "lead": [_lead(record), *dashed, *values["lead"]],
        "batch": batch,
        "batch_text": f"Augmented, mean and std undone ({input}). {_CHANNELS[input.channels]}; eyes and "
        "mouths that do not lie in the same places come from images that are not aligned.",
        "starts": _starts(record),
        "provenance": _provenance(record),
        "given": record.overrides,
        "configuration": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100),
        "folder": str(record.folder),
    }
    beside = [] if reference is None else reference.rows
    charts = [*charts_of_run(record.steps, record.evaluations, beside), *charts_of(models)]
    return page("run.html.j2", charts, values)


def _lead(record: RunRecord) -> str:
    """How far the run has come, and in what time."""
    steps = record.steps
    if not steps:
        return "No step has been logged yet."
    last, seconds = steps[-1], record.seconds
    took = f" in {duration(seconds)}" if seconds is not None else ""
    loss = f", loss {last['loss']:.4g}" if last.get("loss") is not None else ""
    epochs = "1 epoch" if last["epoch"] == 1 else f"{last['epoch']:.4g} epochs"
    return f"{counted(last['step'], 'step')}, {epochs}{took}{loss}."


def _starts(record: RunRecord) -> list[dict[str, Any]]:
    """Each start with the end that followed it and the settings that had changed."""
    starts: list[dict[str, Any]] = []
    for row in record.history:
        if row["event"] == "start":
            changes = [f"{key} = {change}" for key, change in row["changes"].items()]
            changes += _differences(starts[-1]["row"], row) if starts else []
            began = {
                "began": row["time"].replace("+0000", " UTC"),
                "step": f"{row['step']:,}",
                "changes": changes,
                "row": row,
            }
            starts.append(began | {"ended": "at work, or killed"})
        elif starts:
            spent = duration(row["seconds"])
            starts[-1]["ended"] = f"{row['why']} at step {row['step']:,}, after {spent}"
    return starts


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two starts besides the settings: code, machine and data."""
    found = []
    for key in ("commit", "host", "device", "precision", "threads", "fingerprint"):
        if before.get(key) != now.get(key):
            found.append(f"{key} = {now.get(key)} (was {before.get(key)})")
    for name, version in now.get("versions", {}).items():
        was = before.get("versions", {}).get(name)
        if was != version:
            found.append(f"{name} {version} (was {was})")
    return found


def _provenance(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Cards about the last start: command and code, machine, data."""
    if not record.starts:
        return [("Not recorded", [("Folder", str(record.folder))])]
    row = record.starts[-1]
    seconds = record.seconds
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    time = "–" if seconds is None else f"{duration(seconds)} in all its parts"
    cards = {
        "Command": {
            "Command": row["command"],
            "In": row["folder"],
            "Git commit": row["commit"] or "none: not run from a checkout",
            "Versions": versions,
        },
        "Machine": {
            "Host": row["host"],
            "Device": f"{row['device']}, {row['precision']}",
            "Processes": f"{row['processes']}, {counted(row['threads'], 'thread')} each",
            "Time": time,
        },
        "Data": {"Data": row["data"], "Fingerprint": row["fingerprint"], "Seed": str(row["seed"])},
    }
    return [(title, list(facts.items())) for title, facts in cards.items()]
