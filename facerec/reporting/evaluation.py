"""Evaluate checkpoints as configured on the command line, and leave results, tables, report and images."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facerec import distributed
from facerec.errors import CheckpointError, ConfigError
from facerec.evaluation.embedding_cache import EmbeddingCache
from facerec.evaluation.protocols.base import PROTOCOLS, Protocol, create_protocol
from facerec.evaluation.results import Result, log_notes, write_results
from facerec.evaluation.statistics.comparison import Comparison
from facerec.files import write_bytes
from facerec.models.model import Model
from facerec.models.opening import load_model
from facerec.registry import build
from facerec.reporting.evaluated import Evaluated, by_one_yardstick, compared, distinct_names
from facerec.reporting.report import lead, report_html
from facerec.reporting.run_folder import written_line
from facerec.reporting.tables import comparison_lines, matrix, screen_table
from facerec.reporting.text_table import aligned
from facerec.reporting.verification_figures import figures_of, save_figures

log = logging.getLogger(__name__)

Judge = Callable[[Model], Mapping[str, Result]]


def evaluate_checkpoint(
    config: Mapping[str, Any], folder: Path, accept: Callable[[], None] = lambda: None
) -> float:
    """Evaluate `config["ckpt"]`, one checkpoint or a list of them, on the same targets.

    Under torch.distributed every rank embeds a shard of the images, and rank 0 writes.

    Targets and their folder are those given, else those of `config["data"]`, else those that the (first)
    checkpoint was trained with.

    Args:
        config: the composed configuration in plain values.
        folder: for what is written.
        accept: called when the first model has been judged, before anything is written.

    Returns:
        The mean accuracy (or other score) over targets and models.

    Raises:
        UserError: a setting, file or folder that is not as it must be.
    """
    config = build(_command, "", {key: value for key, value in config.items() if key != "plugins"})
    paths = _checkpoints(config["ckpt"])
    names = distinct_names(paths)
    protocol = _protocol(config)
    judge: Judge | None = None
    evaluated: list[Evaluated] = []
    for name, path in zip(names, paths, strict=True):
        model = _loaded(config, Path(path))
        judge = judge or protocol.begin(model)
        results = judge(model)
        if not evaluated:
            accept()
        log_notes(results)
        for target, table in ((name, table) for name, result in results.items() for table in result.tables):
            log.info("%s: %s", target, table.title)
            for line in aligned([table.header, *table.rows]):
                log.info("  %s", line.rstrip())
            if table.finding:
                log.info("  %s", table.finding)
        evaluated.append(Evaluated.of(name, model, results))
    evaluated = by_one_yardstick(evaluated)
    comparisons = compared(evaluated, protocol.resamples, protocol.seed)
    if len(evaluated) > 1:
        crossed = matrix(evaluated)
        published = [crossed.text, *aligned([crossed.header, *crossed.rows])] if crossed else []
        for line in [*screen_table(evaluated).splitlines(), *published, *comparison_lines(comparisons)]:
            log.info(line)
    if distributed.rank() == 0:
        written = write_all(folder, evaluated, comparisons, figures=protocol.figures)
        for line in [*lead(evaluated), written_line(written), _next(evaluated, paths)]:
            log.info("%s", line)
    scores = [result.score for one in evaluated for result in one.results.values()]
    return sum(scores) / len(scores)


def write_all(
    folder: Path,
    evaluated: Sequence[Evaluated],
    comparisons: Mapping[str, Sequence[Comparison]],
    *,
    figures: bool,
) -> list[Path]:
    """Write report.html, results.json and, if wanted, the figures.

    Raises:
        StorageError: a file could not be written.
    """
    document: dict[str, Any] = evaluated[0].document
    if len(evaluated) > 1:
        found = {target: [one.to_dict() for one in several] for target, several in comparisons.items()}
        models = [{"name": one.name} | one.document for one in evaluated]
        document = {"models": models, "comparisons": found}
    results = write_results(folder / "results.json", document)
    page = report_html(evaluated, comparisons, figures=figures)
    written = [write_bytes(folder / "report.html", page.encode()), results]
    for target in dict.fromkeys(target for one in evaluated for target in one.results) if figures else ():
        by_model = {one.name: one.results[target] for one in evaluated if target in one.results}
        written += save_figures(folder, target, figures_of(target, by_model))
    return written


def _next(evaluated: Sequence[Evaluated], paths: Sequence[str]) -> str:
    """What to type next: with one model a comparison, or the export of the best one."""
    means = [np.mean([result.score for result in one.results.values()]) for one in evaluated]
    best = paths[int(np.argmax(means))]
    export = f"facerec-export {shlex.quote(f'ckpt={best}')} format=onnx"
    other = f"facerec-eval {shlex.quote(f'ckpt=[{best},OTHER]')} compares it with another; "
    return f"next       {other if len(paths) == 1 else ''}{export} takes it to other programs"


def _command(
    *,
    ckpt: str | list[str],
    eval: dict[str, Any],
    input: dict[str, Any],
    backbone: dict[str, Any],
    data: dict[str, Any] | None = None,
    device: str = "auto",
    weights: Literal["raw", "ema"] = "raw",
    allow_code: bool = False,
    output_dir: str = "",
) -> dict[str, Any]:
    """The settings of `facerec-eval`; see configs/eval.yaml."""
    return locals()


def _checkpoints(given: Any) -> list[str]:
    paths = [str(path) for path in given] if isinstance(given, list | tuple) else [str(given)]
    if not paths:
        raise ConfigError("ckpt", "[]", "must name at least one checkpoint")
    for path in paths if len(paths) > 1 else []:  # before an hour goes into the first
        if not Path(path).exists():
            raise CheckpointError(f"ckpt={path}: there is no such file; name files that are there")
    return paths


def _protocol(config: Mapping[str, Any]) -> Protocol:
    """The protocol of the configuration, with what the data set's configuration gives where it is null."""
    given = {"protocol": "verification"} | config["eval"]
    for key in ("every_steps", "at_start", "select"):
        if given.get(key):
            log.info("ignored: eval.%s=%s (for facerec-train)", key, given[key])
    builder: Any = PROTOCOLS.builder(given["protocol"])
    for key in builder.from_data:
        if given.get(key) is None:
            given[key] = (config.get("data") or {}).get(key)
    return create_protocol(given)


def _loaded(config: Mapping[str, Any], path: Path) -> Model:
    model = load_model(
        path,
        device=config["device"],
        input=config["input"],
        backbone=config["backbone"],
        weights=config["weights"],
        allow_code=config["allow_code"],
    )
    if config["eval"].get("cache") is not None:
        model.cache = EmbeddingCache(config["eval"]["cache"], model)
    averaged = ", averaged weights" if model.weights == "ema" else ""
    step = "" if model.step is None else f", step {model.step:,}"
    log.info("model: %s%s%s, input %s", path, step, averaged, model.input)
    return model
