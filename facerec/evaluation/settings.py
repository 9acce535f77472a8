"""The settings of an evaluation, the keys of the config group `eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from facerec.errors import require
from facerec.settings import Applied, Count, Free, Measure, Range, check_ranges

USUAL_METRICS = ("accuracy", "auc", "eer", "tar_at_far")

_ZeroOff = Annotated[int, Range(lambda n: n >= 0, "must be 0 (off) or more")]
_Folds = Annotated[int | None, Range(lambda n: n is None or n >= 2, "must be 2 or more, or null")]
_Resamples = Annotated[int, Range(lambda n: 0 <= n <= 10**6, "must be 0 (none) to 1,000,000")]
_Seed = Annotated[int, Range(lambda n: n >= 0, "must be 0 or more")]


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation: its targets and the choices that all of them follow.

    Args:
        protocol: ``verification``; the others are for `facerec-eval` (`evaluation.protocols`).
        targets: names of verification sets; target ``lfw`` is the file ``<root>/lfw.bin``. A path to a `.bin`
            is taken, too.
        root: folder of the ``.bin`` files; null: the working directory.
        every_steps: evaluate during training every so many steps; 0: at the end of each epoch only.
        at_start: evaluate before the first step, too, and show the network as it was beside the trained one.
        batch_size: images that go through the model at once, per rank.
        flip: add the embedding of the mirrored image (the protocol of the published numbers).
        thresholds: ``grid`` tries 0, 0.01, …, 3.99 (published), ``exact`` the midpoints of the sorted
            distances.
        folds: folds of the cross-validation; null: as many as the set was made in, where it says so, else the
            10 of every published number.
        bootstrap: resamples for the 95 % intervals, of identities where the set knows them, else of pairs;
            0: no intervals.
        seed: of the bootstrap.
        metrics: of pairs, registered names (`evaluation.metrics`); accuracy is always among them.
        select: the number whose mean over the targets chooses best.pt: ``accuracy``, ``accuracy_exact`` or
            one of `metrics` (of ``tar_at_far`` that at the smallest FAR the set supports; or
            ``tar_at_far_1e-3``); null: accuracy, but that of exact thresholds where the grid cannot resolve
            the distances, and AUC where folds hold one kind of pairs only.
        precision: number format of the forward pass: ``fp32``, ``bf16`` or ``fp16`` (autocast), or ``auto``:
            bf16 where the hardware has instructions for it, else fp32.
        cache: folder to keep embeddings in, so that the same model file and images need no second pass; for
            `facerec-eval` only; null: none.
        sanity: compare the preprocessing with other common ones on pairs of the first target, and warn where
            one reads clearly better; null: where the model's file does not say which is right.
        calibration: fit probabilities to the cosines, ``logistic`` or ``isotonic``, and show how far they are
            right; null: none.
        quality: reject pairs of low quality and show the errors of the rest: ``norm`` (of the embeddings) or
            a CSV with the columns pair (from 0), first and second; null: not.
        groups: CSV with a column identity or pair and one for each grouping (sex, age, pose): error rates of
            each group at one threshold; null: none.
        figures: draw ROC, score histogram and the pairs nearest the threshold on the wrong side.

    Raises:
        ConfigError: for a value out of range.
    """

    protocol: str = "verification"
    targets: Applied[list[str]] = field(default_factory=list)
    root: Free[str | None] = None
    every_steps: Free[_ZeroOff] = 0
    at_start: Free[bool] = False
    batch_size: Free[Count] = 128
    flip: Measure[bool] = True
    thresholds: Measure[Literal["grid", "exact"]] = "grid"
    folds: Measure[_Folds] = None
    bootstrap: Free[_Resamples] = 1000
    seed: Free[_Seed] = 0
    metrics: list[str] = field(default_factory=lambda: list(USUAL_METRICS))
    select: Measure[str | None] = None
    precision: Measure[Literal["auto", "fp32", "bf16", "fp16"]] = "fp32"
    cache: Free[str | None] = None
    sanity: Free[bool | None] = None
    calibration: Free[Literal["logistic", "isotonic"] | None] = None
    quality: Free[str | None] = "norm"
    groups: Free[str | None] = None
    figures: Free[bool] = True

    def __post_init__(self) -> None:
        own = type(self).__dataclass_fields__["protocol"].default
        require(self.protocol == own, "eval.protocol", self.protocol, f"must be {own} here")
        for key in ("targets", "metrics"):
            names = getattr(self, key)
            require(len(set(names)) == len(names), f"eval.{key}", names, f"names one {key[:-1]} twice")
        check_ranges(self, "eval")
        for key, path in (("groups", self.groups), ("quality", self.quality)):
            there = path in (None, "norm") or Path(path).is_file()
            require(there, f"eval.{key}", path, "no such file")

    @property
    def resamples(self) -> int:
        """Resamples that this rank draws: `bootstrap` on rank 0, which alone shows intervals, else 0."""
        from facerec import distributed  # loads torch

        return self.bootstrap if distributed.rank() == 0 else 0
