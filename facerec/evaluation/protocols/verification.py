"""Verification of sets of image pairs by name: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW, IJB's `.bin` files and
others.

Folds: as set, else as the set was made, else ten (`folds_of`); `statistics.folds.fold_of` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from facerec.errors import ConfigError, MissingDataError, require
from facerec.evaluation.details import detailed, read_side
from facerec.evaluation.embedding import HeldImages, embed_images
from facerec.evaluation.judgement import check_supported, one_sided
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.base import PROTOCOLS, Protocol
from facerec.evaluation.results import Result, logger, warn
from facerec.evaluation.sanity import check_preprocessing
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.statistics.folds import USUAL_FOLDS, fold_numbers
from facerec.evaluation.statistics.separation import Ints
from facerec.evaluation.verify import VerificationResult, verify
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet, load_verification
from facerec.registry import build


@PROTOCOLS.register("verification")
@dataclass(frozen=True)
class Verification(Protocol):
    """The protocol of the published LFW, CFP, AgeDB-30, CALFW and CPLFW numbers.

    Targets and their folder are those given, else those that the (first) model was trained with.
    """

    protocol: Literal["verification"] = "verification"
    from_data = ("targets", "root")

    def results(self, model: Model) -> Mapping[str, Result]:
        """Judge `model` on the targets."""
        return self.begin(model)(model)

    run = results  # `evaluate_targets` logs the lines itself

    def begin(self, first: Model) -> Callable[[Model], Mapping[str, Result]]:
        """Read the verification sets once for all models.

        Raises:
            ConfigError: no targets are given, nor known from training.
            MissingDataError, DamagedDataError: a set is missing or damaged.
        """
        trained_with = first.config.get("eval", {})
        missing = {key: trained_with.get(key) for key in self.from_data if not getattr(self, key)}
        known = {key: value for key, value in missing.items() if value is not None}
        settings = build(Verification, "eval", vars(self) | known)
        if not settings.targets:
            raise ConfigError("eval.targets", settings.targets, "must name at least one set, e.g. [lfw]")
        sets = load_targets(settings)

        def judge(model: Model) -> Mapping[str, Result]:
            if self.sanity or (self.sanity is None and not model.knows_input):
                check_preprocessing(model, sets[0], settings)
            return evaluate_targets(model, sets, settings)

        return judge


def evaluate_set(
    model: Model, verification_set: VerificationSet, settings: EvalSettings | None = None
) -> VerificationResult:
    """Embed the distinct images of a verification set once (and their mirrors) and judge its pairs.

    Under torch.distributed every rank embeds a shard and gets the result, rank 0 its intervals. `model` is
    left as it was.

    Raises:
        NonFiniteError: naming the image whose embedding is not finite.
        DamagedDataError: naming an image that cannot be decoded.
    """
    settings = settings or EvalSettings()
    embedded = embed_images(
        model,
        HeldImages(verification_set.images, verification_set.where),
        name=verification_set.name,
        batch_size=settings.batch_size,
        flip=settings.flip,
        precision=settings.precision,
    )
    index_2N = np.asarray(verification_set.index_2N)
    mirrored_PD = embedded.mirrored_PD
    result = verify(
        embedded.plain_PD[index_2N],
        verification_set.issame_N,
        flipped_2ND=None if mirrored_PD is None else mirrored_PD[index_2N],
        folds=folds_of(verification_set, settings),
        thresholds=settings.thresholds,
        metrics=settings.metrics,
        bootstrap=settings.resamples,
        seed=settings.seed,
        identity_2N=verification_set.identity_2N,
        name=verification_set.name,
    )
    result = replace(result, source=verification_set)
    return detailed(result, read_side(verification_set, settings), settings)


def folds_of(verification_set: VerificationSet, settings: EvalSettings) -> int | Ints:
    """Folds of the cross-validation of a set: as set, else as it was made, else the usual ten."""
    if verification_set.fold_N is not None and settings.folds in (None, verification_set.folds):
        return verification_set.fold_N
    return settings.folds or USUAL_FOLDS


def warn_of_folds(verification_set: VerificationSet, settings: EvalSettings) -> None:
    """Say what makes a poor cross-validation, before anything is embedded.

    Raises:
        ConfigError: there are more folds than pairs.
    """
    name, made = verification_set.name, verification_set.folds
    if made and settings.folds not in (None, made):
        warn(f"{name} was made in {made} folds; eval.folds={settings.folds} cuts across them")
    same_N = np.asarray(verification_set.issame_N)
    for note in one_sided(same_N, fold_numbers(len(same_N), folds_of(verification_set, settings))[0]):
        warn(note, name)


def require_select(sets: Sequence[VerificationSet], settings: EvalSettings) -> None:
    """Raise `ConfigError` where the pairs of a set do not support `eval.select`; nothing is embedded."""
    for one in sets if settings.select is not None else ():
        made_up_2N2 = np.random.default_rng(0).normal(size=(2 * len(one.issame_N), 2))
        folds = folds_of(one, settings)
        result = verify(made_up_2N2, one.issame_N, folds=folds, metrics=settings.metrics)
        check_supported(one.name, result, settings.select)


def target_path(root: str | Path | None, name: str) -> Path:
    """The file of target `name`: ``<root>/<name>.bin``, with that ending or without; or the `.bin` it names.

    Raises:
        MissingDataError: it is not there; the message lists the ones that are.
    """
    root = root or "."
    path = Path(root) / f"{name.removesuffix('.bin')}.bin"
    for file in (path, Path(name)):
        if file.suffix == ".bin" and file.is_file():
            return file
    there = sorted(other.stem for other in Path(root).glob("*.bin")) if Path(root).is_dir() else None
    if there is None and Path(root).is_file():
        found = f"{root} is a file; eval.root is a folder, and 'eval.targets=[{root}]' names one .bin"
    elif there is None:
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
        read_side(one, settings, say=True)  # a file that does not fit is refused before anything is embedded
    return sets


def evaluate_targets(
    model: Model,
    sets: Sequence[VerificationSet],
    settings: EvalSettings,
    *,
    step: int | None = None,
    highest: dict[str, float] | None = None,
    prefix: str = "",
) -> dict[str, VerificationResult]:
    """Evaluate `model` on each set and log the lines of the field's habit.

    Under torch.distributed every rank must call it, and gets the results.

    Args:
        model: runs in eval mode and is left as it was.
        sets: from `load_targets`.
        step: training step for the log, else the model's own.
        highest: the highest accuracy so far of each target; updated here. Keep it in the checkpoint, and the
            ``highest_acc`` line goes on where it was after a resume.
        prefix: of the names in the log, for other weights than those of the run: ``[ema/lfw][60000]…``; they
            have no ``highest_acc`` line.
    """
    step = model.step if step is None else step
    highest = {} if highest is None else highest
    results = {}
    for verification_set in sets:
        name = verification_set.name
        result = evaluate_set(model, verification_set, settings)
        names = () if verification_set.identity_2N is None else set(verification_set.identity_2N.tolist())
        result = replace(result, notes=result.notes + overlap_notes(model, names, name))
        for line in result.log_lines(prefix + name, step):
            logger.info(line)
        highest[name] = max(result.accuracy, highest.get(name, 0.0))
        results[name] = result
    if not prefix:
        logger.info("highest_acc: [%s]", ", ".join(f"{highest[name]:.5f}" for name in results))
    return results
