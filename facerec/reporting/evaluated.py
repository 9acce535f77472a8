"""A model that was judged, with what has to be said of it, and names that tell models apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facerec.errors import ConfigError
from facerec.evaluation.results import Result, results_document
from facerec.evaluation.statistics.comparison import Comparison, compare
from facerec.models.model import Model


@dataclass(frozen=True)
class Evaluated:
    """Results of one model by target, and what to say of the model; the model itself may be gone.

    Attributes:
        name: short, different for each model of a comparison.
        results: by target.
        document: results.json of this model.
        facts: checkpoint, step, backbone, preprocessing and so on, for people.
    """

    name: str
    results: Mapping[str, Result]
    document: dict[str, Any]
    facts: list[tuple[str, str]]

    @classmethod
    def of(cls, name: str, model: Model, results: Mapping[str, Result]) -> Evaluated:
        """What is kept of `model`."""
        parameters = sum(one.numel() for one in model.backbone.parameters())
        backbone = model.config.get("backbone", {}).get("name") or type(model.backbone).__name__
        facts = [("Checkpoint", str(model.path) if model.path is not None else "in memory")]
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
    """A short name for each checkpoint: the parts of its path in which it differs from the others.

    ``runs/a/checkpoints/best.pt`` and ``runs/b/checkpoints/best.pt`` become ``a`` and ``b``; one alone is
    called ``a/best.pt``, or by its file where that is in no run.

    Raises:
        ConfigError: two of the paths are the same file.
    """
    whole = [Path(os.path.realpath(Path(path).expanduser())) for path in paths]  # links in a circle, too
    for at, path in enumerate(whole):
        if path in whole[:at]:
            raise ConfigError("ckpt", paths[at], "is given twice; name each checkpoint once")
    if len(paths) == 1:
        *_, run, folder = ("", "", *whole[0].parent.parts)
        return [f"{run}/{whole[0].name}" if folder == "checkpoints" and run else whole[0].name]
    parts = [path.parts for path in whole]
    shortest = min(map(len, parts))
    lead = next((i for i in range(shortest) if len({one[i] for one in parts}) > 1), shortest)
    trail = next(
        (i for i in range(shortest - lead) if len({one[-1 - i] for one in parts}) > 1), shortest - lead
    )
    differing = [one[lead : len(one) - trail] for one in parts]
    short = ["/".join(part for part in one if part != "checkpoints") for one in differing]
    for names in (short, ["/".join(one) for one in differing]):
        if all(names) and len(set(names)) == len(names):
            return names
    return ["/".join(one[max(0, lead - 1) :]) for one in parts]
