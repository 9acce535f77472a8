"""Evaluate a checkpoint from the command line's configuration, and leave results and pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facerec import checkpoint
from facerec.errors import ConfigError
from facerec.evaluation.model import load_model
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.targets import evaluate_targets, load_targets, results_document, write_results
from facerec.registry import build
from facerec.reporting.verification_figures import save_figures

log = logging.getLogger(__name__)


def evaluate_checkpoint(config: Mapping[str, Any], folder: Path) -> float:
    """Evaluate `config["ckpt"]` on its targets; returns the mean accuracy.

    Targets and their folder are those given, else those of `config["data"]`, else those that the checkpoint
    was trained with.

    Raises:
        UserError: a setting, file or folder that is not as it must be.
    """
    path = Path(config["ckpt"])
    given = dict(config["eval"])
    trained_with = checkpoint.load(path).get("config", {}).get("eval", {})
    for key in ("targets", "root"):
        chosen = given[key] if given[key] is not None else (config.get("data") or {}).get(key)
        given[key] = chosen if chosen is not None else trained_with.get(key)
    if not given["targets"]:
        raise ConfigError("eval.targets", given["targets"], "must name at least one set, e.g. [lfw]")
    settings = build(EvalSettings, "eval", given)
    verification_sets = load_targets(settings)
    model = load_model(path, device=config["device"], input=config["input"])
    log.info("model: %s, step %s, input %s", path, model.step, model.input)
    results = evaluate_targets(model, verification_sets, settings)
    written = [write_results(folder / "results.json", results_document(results, model))]
    if settings.figures:
        for name, result in results.items():
            written += save_figures(folder, name, result)
    for file in written:
        log.info("wrote %s", file)
    return sum(result.accuracy for result in results.values()) / len(results)
