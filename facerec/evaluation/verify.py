"""Verification of pairs of embeddings: accuracy over folds, and the metrics that were chosen.

The protocol of LFW, CFP, AgeDB-30, CALFW, CPLFW and VGG2-FP as the widespread scripts compute it; equal
embeddings give equal numbers to the last digit.

Shape suffixes: N pairs, 2N images (rows 2i and 2i + 1 are pair i), D embedding size, F folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facerec.errors import counted, require
from facerec.evaluation.judgement import judge, trusted
from facerec.evaluation.metrics import JudgedPairs
from facerec.evaluation.metrics.base import create_metrics, measure, measured_intervals
from facerec.evaluation.results import (
    HardPair,
    HardPairs,
    Number,
    PairResult,
    alike_notes,
    flip_fact,
    histogram_series,
    rate_series,
    unsupported,
    warn,
)
from facerec.evaluation.settings import USUAL_METRICS
from facerec.evaluation.statistics.bootstrap import Interval, numbered_identities
from facerec.evaluation.statistics.bootstrap import bootstrap as resample
from facerec.evaluation.statistics.folds import Folds, Thresholds, cross_validate
from facerec.evaluation.statistics.separation import (
    Bools,
    Floats,
    Ints,
    Separation,
    answers,
    as_floats,
    check_shapes,
    pair_distances,
)

if TYPE_CHECKING:
    import torch

UNEVEN = 0.6  # the part of a set that pairs of one kind make up, from which its accuracy needs a word
NEAREST = 10  # of the pairs judged wrong and of the worst of them, listed in results.json


@dataclass(frozen=True, kw_only=True)
class VerificationResult(PairResult):
    """Result of the protocol on one set; `to_dict` gives the entry of results.json.

    Rates are between 0 and 1, distances squared Euclidean between unit vectors, 0 … 4. A number that the set
    cannot support (TAR at a FAR with too few impostor pairs) is None, and `notes` says why.
    """

    best_threshold: float
    xnorm: float
    folds: int
    fold_accuracy: list[float]
    fold_threshold: list[float]
    accuracy_noflip: float | None
    bootstrap: int
    accuracy_exact: float
    """The same with the exact threshold search, whatever `thresholds` says."""
    accuracy_exact_std: float
    accuracy_exact_interval: Interval
    best_threshold_exact: float
    interval_over: str | None
    """Unit that is resampled for the 95 % intervals: ``identities`` or ``pairs``; None: no intervals."""
    identities: int | None
    """Number of identities of the set, where they are known."""
    thresholds: str
    flip: bool
    distance_N: Floats = field(repr=False)
    issame_N: Bools = field(repr=False)
    wrong_genuine: Ints = field(repr=False)
    """Genuine pairs called different, by the distance to their fold's threshold: nearest first, worst
    last."""
    wrong_impostor: Ints = field(repr=False)
    """Impostor pairs called same, likewise."""
    validated: Mapping[str, Folds] = field(repr=False)
    """The folds of ``accuracy`` and of ``accuracy_exact``."""
    norm_2N: Floats = field(repr=False)
    """Norm of each image's raw embedding, mean of its views."""
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    """What `facerec.evaluation.details` adds to the entry of results.json."""

    kind = "verification"

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json, with some of the pairs that were judged wrong."""
        entry = super().to_dict() | {"judged_by": self.score_key} | self.details
        for kind, wrong in (("genuine", self.wrong_genuine), ("impostor", self.wrong_impostor)):
            nearest, worst = wrong[:NEAREST].tolist(), wrong[::-1][:NEAREST].tolist()
            entry[f"wrong_{kind}"] = {"count": len(wrong), "nearest": nearest, "worst": worst}
        return entry

    def numbers(self) -> list[Number]:
        """The metrics as they were chosen, after the accuracy that of the exact thresholds."""
        numbers = super().numbers()
        if self.thresholds != "exact":
            exact = self.accuracy_exact, self.accuracy_exact_interval, self.accuracy_exact_std
            numbers.insert(1, Number("accuracy_exact", "Exact accuracy", *exact))
        return [replace(number, trusted=trusted(number.key, self.score_key)) for number in numbers]

    def judged_by(self, key: str) -> VerificationResult:
        """The same, judged by another of its numbers: ``accuracy``, ``accuracy_exact`` or ``auc``."""
        folds = self.validated["accuracy" if key == "accuracy" else "accuracy_exact"]
        return replace(self, score_key=key, **_decisions(self.distance_N, self.issame_N, folds))

    def lines(self) -> list[str]:
        """XNorm, Accuracy-Flip and Best-Threshold, five digits each; then the numbers beside them."""
        numbers = [number for number in self.numbers()[1:] if number.value is not None]
        rates = [number for number in numbers if number.key.startswith("tar_at_far_")]
        shown = [number for number in numbers if number not in rates[:-1]]
        others = ", ".join(f"{number.phrase} {number.value:.5f}" for number in shown)
        judged = self.headline.phrase if self.headline else "none of them"
        accuracy = "Accuracy-Flip" if self.flip else "Accuracy"
        return [
            f"XNorm: {self.xnorm:.5f}",
            f"{accuracy}: {self.accuracy:.5f}+-{self.accuracy_std:.5f}",
            f"Best-Threshold: {self.best_threshold:.5f}",
            f"Others: {others}{'; ' if others else ''}judged by {judged}",
        ]

    def facts(self) -> list[tuple[str, str]]:
        """Protocol, pairs, thresholds, norms and what was judged wrong."""
        exact = f"accuracy {self.accuracy_exact:.5f} at {self.best_threshold_exact:.5f}, mean of folds"
        facts = [
            *self._pair_facts(),
            ("Identities", "not known" if self.identities is None else f"{self.identities:,}"),
            flip_fact(self.flip),
            ("Threshold", f"{self.best_threshold:.5f}, mean of {self.folds} folds"),
            ("Exact threshold", exact),
        ]
        if self.flip and self.accuracy_noflip is not None:
            facts.append(("Without flip", f"accuracy {self.accuracy_noflip:.5f}"))
        facts.append(("XNorm", f"{self.xnorm:.5f}"))
        if self.interval_over is not None:
            facts.append(
                ("Intervals", f"95 %, {counted(self.bootstrap, 'resample')} of the {self.interval_over}")
            )
        wrong = len(self.wrong_genuine), len(self.wrong_impostor)
        facts.append(("Judged wrong", f"{wrong[0]:,} genuine and {wrong[1]:,} impostor pairs"))
        return facts

    @property
    def conditions(self) -> str:
        return f"{super().conditions}, {self.folds} folds, {'flip-TTA' if self.flip else 'no flip'}"

    def hardest(self, count: int = 8) -> list[HardPairs]:
        names = None if self.source is None else self.source.identity_2N
        found = []
        for genuine, wrong in ((True, self.wrong_genuine), (False, self.wrong_impostor)):
            chosen = np.flatnonzero(self.issame_N == genuine)
            distance = self.distance_N[chosen].astype(np.float64)
            worst = chosen[np.argsort(-distance if genuine else distance, kind="stable")[:count]]
            pairs = [
                HardPair(
                    pair,
                    float(self.distance_N[pair]),
                    pair in wrong,
                    None if names is None else (str(names[2 * pair]), str(names[2 * pair + 1])),
                )
                for pair in worst.tolist()
            ]
            found.append(HardPairs("genuine" if genuine else "impostor", len(wrong), pairs))
        return found


def verify(
    embedding_2ND: npt.ArrayLike | torch.Tensor,
    issame_N: npt.ArrayLike | torch.Tensor,
    *,
    flipped_2ND: npt.ArrayLike | torch.Tensor | None = None,
    folds: int | Ints = 10,
    thresholds: Thresholds = "grid",
    metrics: Iterable[str] = USUAL_METRICS,
    bootstrap: int = 0,
    seed: int = 0,
    identity_2N: npt.ArrayLike | None = None,
    name: str = "",
) -> VerificationResult:
    """Judge pairs of embeddings by the ten-fold verification protocol.

    With `flipped_2ND`, f = normalise(e + e'), the flip-TTA of the protocol; without, f = normalise(e), so
    that embeddings which are summed already (or unit vectors) are judged as they are. The distance of a pair
    is ‖f1 − f2‖². A row whose norm is 0 stays 0, a distance of 1 from every other unit vector, and is
    counted in `notes`.

    Args:
        embedding_2ND: embeddings, NumPy or torch, of any norm and floating dtype (half precisions are
            widened); rows 2i and 2i + 1 are pair i. Computed in their own precision, as the published
            scripts do.
        issame_N: booleans, or the numbers 1 (genuine) and 0; (N,) or (N, 1).
        flipped_2ND: embeddings of the mirrored images, same shape.
        folds: 2 … N; contiguous in file order, sizes as scikit-learn's ``KFold`` where N is not a multiple;
            or the fold of each pair.
        thresholds: ``grid`` tries 0, 0.01, …, 3.99 as published; ``exact`` the midpoints of the other
            folds' sorted distances.
        metrics: registered ones (`facerec.evaluation.metrics`); accuracy is always among them.
        bootstrap: number of resamples for 95 % intervals of the metrics; 0 for none.
        seed: of the bootstrap.
        identity_2N: identity of each image, names or numbers, which are resampled then; None: pairs are,
            as if they were independent.
        name: of the set, for warnings.

    Returns:
        The metrics (accuracy: mean ± population deviation over folds; AUC; EER: FAR = FRR on the ROC
        polyline; TAR at the largest threshold whose FAR ≤ 1e-1 … 1e-6), XNorm (mean norm of all rows given,
        both views), and more.

    Raises:
        ConfigError: for `folds` out of range (so also for fewer pairs than folds), unknown `thresholds` or
            an unknown metric.
        UserError: for arrays whose shapes do not fit, an answer that is neither true nor false, or identities
            that contradict `issame_N`.
        NonFiniteError: for an embedding that holds NaN or infinity; it names the row.
    """
    require(bootstrap >= 0, "eval.bootstrap", bootstrap, "must be 0 (none) or a number of resamples")
    plain = as_floats(embedding_2ND)
    mirrored = None if flipped_2ND is None else as_floats(flipped_2ND)
    same = answers(issame_N)
    check_shapes(plain, mirrored, same)

    distance_N, plain_distance_N, norm, zero = pair_distances(plain, mirrored)
    validated = cross_validate(distance_N, same, folds, thresholds)
    exact = validated if thresholds == "exact" else cross_validate(distance_N, same, folds, "exact")
    noflip = validated
    if mirrored is not None:
        noflip = cross_validate(plain_distance_N, same, folds, thresholds)

    score_key, deciding, cautions = judge(distance_N, same, validated, exact)
    by_exact = deciding is not validated
    if by_exact:
        warn(cautions[-1], name)
    instead = ("auc", "eer") if score_key == "auc" else ()
    chosen = create_metrics(dict.fromkeys(("accuracy", *metrics, *instead)))
    pairs = JudgedPairs(distance_N, same, validated)
    values = measure(chosen, pairs)
    identity_N2 = None if identity_2N is None else numbered_identities(identity_2N, same)
    drawn = resample(
        distance_N,
        same,
        folds,
        "exact" if by_exact else thresholds,
        metrics=chosen,
        resamples=bootstrap,
        seed=seed,
        identity_N2=identity_N2,
    )
    over = "pairs" if identity_N2 is None else "identities"
    intervals = measured_intervals(values, chosen, drawn)
    exact_interval = intervals["accuracy_interval"] if by_exact or exact is validated else None
    if by_exact:
        intervals["accuracy_interval"] = None
    count = len(validated.accuracy_F)
    return VerificationResult(
        values=values | intervals,
        metrics=chosen,
        pairs=len(same),
        genuine_pairs=int(same.sum()),
        best_threshold=validated.threshold,
        # In double precision, where order does not matter, rounded as published.
        xnorm=float(plain.dtype.type(norm.mean(dtype=np.float64))),
        folds=count,
        fold_accuracy=validated.accuracy_F.tolist(),
        fold_threshold=validated.threshold_F.tolist(),
        accuracy_noflip=noflip.accuracy,
        bootstrap=bootstrap,
        accuracy_exact=exact.accuracy,
        accuracy_exact_std=exact.accuracy_std,
        accuracy_exact_interval=exact_interval,
        best_threshold_exact=exact.threshold,
        interval_over=over if bootstrap else None,
        identities=None if identity_N2 is None else int(identity_N2.max()) + 1,
        thresholds=thresholds,
        flip=mirrored is not None,
        protocol=_protocol(count, mirrored is not None, thresholds),
        notes=[
            *alike_notes(pairs.separation),
            *_notes(zero, values.get("tar_at_far", {}), pairs.separation),
            *cautions,
        ],
        score_key=score_key,
        decided="pairs judged by their fold's threshold",
        identity_N2=identity_N2,
        curves=[
            *rate_series(pairs.separation, "distance", values.get("eer")),
            *histogram_series(pairs.separation, "distance", deciding.threshold),
        ],
        distance_N=distance_N,
        issame_N=same,
        validated={"accuracy": validated, "accuracy_exact": exact},
        norm_2N=norm.reshape(-1, 2 * len(same)).mean(axis=0),
        **_decisions(distance_N, same, deciding),
    )


def _decisions(distance_N: Floats, same: Bools, validated: Folds) -> dict[str, Any]:
    """Genuine pairs called different and impostor pairs called same by their fold, nearest first; and which
    pairs were judged right.
    """
    beyond_N = distance_N - validated.threshold_F[validated.fold_N]
    nearest = np.argsort(np.abs(beyond_N), kind="stable")
    called_same = (beyond_N < 0)[nearest]
    return {
        "wrong_genuine": nearest[same[nearest] & ~called_same],
        "wrong_impostor": nearest[~same[nearest] & called_same],
        "right_X": (beyond_N < 0) == same,
    }


def _protocol(folds: int, flip: bool, thresholds: str) -> str:
    view = "flip-TTA (e + e')" if flip else "no flip"
    search = "grid 0, 0.01, …, 3.99" if thresholds == "grid" else "exact threshold search"
    return f"verification, {folds} folds in file order, {view}, {search}"


def _notes(zero: int, tar_at_far: dict[str, float | None], separation: Separation) -> list[str]:
    """Return what a reader of the numbers has to know about this set."""
    notes: list[str] = []
    if zero:
        notes += warn(f"{zero} embeddings are all zeros: the backbone says nothing about those images")
    if not separation.both_kinds:
        notes.append("only one kind of pairs (genuine or impostor): no AUC, EER or TAR@FAR")
    else:
        count = len(separation.impostor_I)
        notes += unsupported(tar_at_far, "TAR at FAR", count, "impostor pairs of this set")
        rate = max(count, len(separation.genuine_G)) / (count + len(separation.genuine_G))
        if rate >= UNEVEN:
            kind = "different" if count > len(separation.genuine_G) else "same"
            notes.append(f"answering always {kind} would score an accuracy of {rate:.3f} on these pairs")
    return notes
