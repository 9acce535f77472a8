"""Evaluated models: their results and facts, their comparison, and names that tell them apart."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from facerec.errors import ConfigError
from facerec.evaluation.judgement import by_one_number
from facerec.evaluation.results import Result, results_document
from facerec.evaluation.statistics.comparison import Comparison, compare
from facerec.models.model import Model


@dataclass(frozen=True)
class Evaluated:
    """Results of one model by target, and facts about the model, which itself may be gone.

    Attributes:
        name: short, different for each model of a comparison.
        results: by target.
        document: results.json of this model.
        facts: checkpoint, step, backbone, preprocessing and so on, to be read.
    """

    name: str
    results: Mapping[str, Result]
    document: dict[str, Any]
    facts: list[tuple[str, str]]

    @classmethod
    def of(cls, name: str, model: Model, results: Mapping[str, Result]) -> Evaluated:
        """Keep the results, and the facts about `model`."""
        parameters = sum(one.numel() for one in model.backbone.parameters())
        backbone = model.config.get("backbone", {}).get("name") or type(model.backbone).__name__
        facts = [("Checkpoint", str(model.path) if model.path is not None else "in memory")]
        if model.weights != "raw":
            facts.append(("Weights", "their moving average (weights=ema)"))
        if model.step is not None:
            facts.append(("Step", f"{model.step:,}"))
        facts.append(("Backbone", f"{backbone}, {parameters:,} parameters" if parameters else str(backbone)))
        taken = "" if model.knows_input else " (not in the file: given, or taken for granted)"
        facts.append(("Preprocessing", f"{model.input}{taken}"))
        for key in ("head", "data"):
            trained = model.config.get(key)
            if isinstance(trained, Mapping) and trained.get("name"):
                facts.append(("Trained with" if key == "head" else "Trained on", str(trained["name"])))
        return cls(name, results, results_document(results, model), facts)


Row = tuple[Evaluated, str, Result]


def rows_of(evaluated: Sequence[Evaluated]) -> list[Row]:
    """Model, target and result, those of one target together."""
    targets = list(dict.fromkeys(target for one in evaluated for target in one.results))
    return [
        (one, target, one.results[target]) for target in targets for one in evaluated if target in one.results
    ]


def by_one_yardstick(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """The models with all results on a target judged by one number, which suits each of them."""
    judged: list[dict[str, Result]] = [dict(one.results) for one in evaluated]
    for target in dict.fromkeys(target for results in judged for target in results):
        having = [results for results in judged if target in results]
        for results, result in zip(having, by_one_number([r[target] for r in having]), strict=True):
            results[target] = result
    return [replace(one, results=results) for one, results in zip(evaluated, judged, strict=True)]


def compared(evaluated: Sequence[Evaluated], bootstrap: int, seed: int) -> dict[str, list[Comparison]]:
    """Every two models on each target (`statistics.comparison.compare`); empty for one model."""
    if len(evaluated) < 2:
        return {}
    comparisons = {}
    for target in evaluated[0].results:
        by_model = {one.name: one.results[target] for one in evaluated if target in one.results}
        comparisons[target] = compare(by_model, bootstrap=bootstrap, seed=seed)
    return {target: found for target, found in comparisons.items() if found}


def distinct_names(paths: Sequence[str]) -> list[str]:
    """A short name per checkpoint: the parts of its path in which it differs from the others.

    ``runs/a/checkpoints/best.pt`` and ``runs/b/checkpoints/best.pt`` become ``a`` and ``b``; one alone, and
    several that have no folder in common, are called ``a/best.pt``, or by the file where that is in no run.

    Raises:
        ConfigError: two of the paths are the same file.
    """
    real = [Path(os.path.realpath(Path(path).expanduser())) for path in paths]  # links in a circle, too
    for at, path in enumerate(real):
        if path in real[:at]:
            raise ConfigError("ckpt", paths[at], "is given twice; name each checkpoint once")
    parts = [path.parts for path in real]
    lead = _in_common(parts)
    alone = [_name_alone(path) for path in real]
    if len(paths) == 1 or (lead == 1 and len(set(alone)) == len(alone)):
        return alone
    trail = _in_common([one[lead:][::-1] for one in parts])
    differing = [one[lead : len(one) - trail] for one in parts]
    short = ["/".join(part for part in one if part != "checkpoints") for one in differing]
    for names in (short, ["/".join(one) for one in differing]):
        if all(names) and len(set(names)) == len(names):
            return names
    return ["/".join(one[max(0, lead - 1) :]) for one in parts]


def _name_alone(path: Path) -> str:
    *_, run, folder = ("", "", *path.parent.parts)
    return f"{run}/{path.name}" if folder == "checkpoints" and run else path.name


def _in_common(names: Sequence[Sequence[str]]) -> int:
    """Number of items with which all of these begin."""
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return sum(1 for _ in alike)
