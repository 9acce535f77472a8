"""Evaluate a checkpoint from the command line's configuration, and leave results and pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facerec.errors import ConfigError
from facerec.evaluation.embedding_cache import EmbeddingCache
from facerec.evaluation.model import Model, load_model
from facerec.evaluation.protocols import Result, protocol_settings
from facerec.evaluation.sanity import check_preprocessing
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.targets import evaluate_targets, load_targets, results_document, write_results
from facerec.evaluation.verification import VerificationResult
from facerec.registry import build
from facerec.reporting.verification_figures import save_figures

log = logging.getLogger(__name__)


def evaluate_checkpoint(config: Mapping[str, Any], folder: Path) -> float:
    """Evaluate `config["ckpt"]` on its targets; returns the mean accuracy (or other score).

    Targets and their folder are those given, else those of `config["data"]`, else those that the checkpoint
    was trained with.

    Raises:
        UserError: a setting, file or folder that is not as it must be.
    """
    path = Path(config["ckpt"])
    given = dict(config["eval"])
    if given.get("protocol", "verification") != "verification":
        settings = protocol_settings(given)
        model = _loaded(config, path)
        return _reported(settings.run(model), model, folder, figures=settings.figures)
    model = _loaded(config, path)
    trained_with = model.config.get("eval", {})
    for key in ("targets", "root"):
        chosen = given[key] if given[key] is not None else (config.get("data") or {}).get(key)
        given[key] = chosen if chosen is not None else trained_with.get(key)
    if not given["targets"]:
        raise ConfigError("eval.targets", given["targets"], "must name at least one set, e.g. [lfw]")
    wanted = build(EvalSettings, "eval", given)
    verification_sets = load_targets(wanted)
    if wanted.sanity or (wanted.sanity is None and not model.knows_input):
        check_preprocessing(model, verification_sets[0], wanted)
    results = evaluate_targets(model, verification_sets, wanted)
    return _reported(results, model, folder, figures=wanted.figures)


def _loaded(config: Mapping[str, Any], path: Path) -> Model:
    model = load_model(
        path,
        device=config["device"],
        input=config["input"],
        backbone=config["backbone"],
        allow_code=config["allow_code"],
    )
    if config["eval"].get("cache") is not None:
        model.cache = EmbeddingCache(config["eval"]["cache"], model)
    log.info("model: %s, step %s, input %s", path, model.step, model.input)
    return model


def _reported(results: Mapping[str, Result], model: Model, folder: Path, *, figures: bool) -> float:
    """Say what goes with the numbers, write results.json and the figures; returns the mean score."""
    for name, result in results.items():
        log.info("%s: %s", name, result.protocol)
        if isinstance(result, VerificationResult) and result.accuracy_interval is not None:
            low, high = result.accuracy_interval
            log.info("%s: accuracy %.5f to %.5f (95 %% interval over pairs)", name, low, high)
        for note in result.notes:
            log.info("%s: %s", name, note)
    written = [write_results(folder / "results.json", results_document(results, model))]
    for name, result in results.items():
        if figures and isinstance(result, VerificationResult):
            written += save_figures(folder, name, result)
    for file in written:
        log.info("wrote %s", file)
    return sum(result.score for result in results.values()) / len(results)
