"""Verification sets by name: find them, evaluate a model on all of them, log and write what came out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from facerec.errors import MissingDataError, require
from facerec.evaluation.embedding import PairSet
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.verification import VerificationResult, evaluate_set, warn_of_folds
from facerec.evaluation.results import Result
from facerec.evaluation.settings import EvalSettings
from facerec.files import replacing
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet, load_verification

logger = logging.getLogger("facerec.evaluation")


def target_path(root: str | Path, name: str) -> Path:
    """The file of target `name`: ``<root>/<name>.bin``, with that ending or without; or the `.bin` it names.

    Raises:
        MissingDataError: it is not there; the message lists the ones that are.
    """
    path = Path(root) / f"{name.removesuffix('.bin')}.bin"
    for file in (path, Path(name)):
        if file.suffix == ".bin" and file.is_file():
            return file
    there = sorted(other.stem for other in Path(root).glob("*.bin")) if Path(root).is_dir() else None
    if there is None:
        found = f"there is no folder {root}; set eval.root to the folder of the .bin files"
    elif there:
        found = f"{root} has {', '.join(there)}; name one of those in eval.targets, or set eval.root"
    else:
        found = f"{root} has no .bin files; set eval.root to the folder that has them"
    raise MissingDataError(f"eval.targets: no verification set {name} at {path}: {found}")


def load_targets(settings: EvalSettings) -> list[VerificationSet]:
    """The verification sets of `settings.targets`, in that order; all paths are checked before any is read.

    Raises:
        MissingDataError: a set is missing.
        DamagedDataError: a file is not a verification pack.
        ConfigError: two of them have one name, under which the results of one only could stand.
    """
    paths = [target_path(settings.root, name) for name in settings.targets]
    for at, path in enumerate(paths):
        twin = next((other for other in paths[:at] if other.stem == path.stem), None)
        hint = f"{twin} and {path} would share the name {path.stem}; evaluate them one after the other"
        require(twin is None, "eval.targets", settings.targets, hint)
    sets = [load_verification(path) for path in paths]
    for one in sets:
        warn_of_folds(one, settings)
    return sets


def evaluate_targets(
    model: Model,
    sets: Sequence[PairSet],
    settings: EvalSettings,
    *,
    step: int | None = None,
    highest: dict[str, float] | None = None,
) -> dict[str, VerificationResult]:
    """Evaluate `model` on each set and log the lines of the field's habit.

    Under torch.distributed every process must call it, and gets the results; give the others than rank 0 a
    logger that is quiet.

    Args:
        model: runs in eval mode and is left as it was.
        sets: from `load_targets`.
        settings: batch size, flip, thresholds and so on.
        step: training step for the log, else the model's own.
        highest: the highest accuracy so far of each target; updated here. Keep it in the checkpoint, and the
            ``highest_acc`` line goes on where it was after a resume.

    Returns:
        The result of each set by name, in the order of `sets`.
    """
    step = model.step if step is None else step
    highest = {} if highest is None else highest
    results = {}
    for verification_set in sets:
        name = verification_set.name
        result = evaluate_set(model, verification_set, settings)
        people = () if verification_set.identity_2N is None else set(verification_set.identity_2N.tolist())
        result = replace(result, notes=result.notes + overlap_notes(model, people, name))
        for line in result.log_lines(name, step):
            logger.info(line)
        highest[name] = max(result.accuracy, highest.get(name, 0.0))
        results[name] = result
    logger.info("highest_acc: [%s]", ", ".join(f"{highest[name]:.5f}" for name in results))
    return results


def results_document(
    results: Mapping[str, Result],
    model: Model,
    *,
    step: int | None = None,
    ckpt: str | None = None,
) -> dict[str, Any]:
    """What results.json holds: an entry a target, which model it was, and the preprocessing that was used."""
    return {
        "targets": {name: result.to_dict() for name, result in results.items()},
        "ckpt": ckpt if ckpt is not None else (None if model.path is None else str(model.path)),
        "step": model.step if step is None else step,
        "preprocessing": model.input.to_dict(),
    }


def write_results(path: str | Path, document: Mapping[str, Any]) -> Path:
    """Write results.json at full precision: under another name first, then renamed, so that no half file is
    left.

    Raises:
        StorageError: it could not be written; a file that was there before still is.
    """
    path = Path(path)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")
    return path
