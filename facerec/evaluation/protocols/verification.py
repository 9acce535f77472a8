"""The verification protocol with flip-TTA: pairs of embeddings to accuracy, ROC, TAR@FAR and what goes with
them.

The protocol of LFW, CFP, AgeDB-30, CALFW, CPLFW and VGG2-FP as the widespread scripts compute it; equal
embeddings give equal numbers to the last digit.

Shape suffixes: N pairs, 2N images (rows 2i and 2i + 1 are pair i), D embedding size, F folds, P distinct
images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facerec.errors import require
from facerec.evaluation.results import (
    Interval,
    Number,
    Result,
    Series,
    flip_fact,
    histogram,
    numbers_at,
    pair_counts,
    rate_curve,
)
from facerec.evaluation.statistics.bootstrap import bootstrap as resample
from facerec.evaluation.statistics.bootstrap import interval, numbered_people
from facerec.evaluation.statistics.distances import answers, as_floats, check_shapes, compare, mean_norm
from facerec.evaluation.statistics.folds import USUAL_FOLDS, Folds, Ints, Thresholds, cross_validate, fold_of
from facerec.evaluation.statistics.metrics import Bools, Floats, Separation

if TYPE_CHECKING:
    import torch

    from facerec.evaluation.embedding import PairSet
    from facerec.evaluation.settings import EvalSettings
    from facerec.models.model import Model

logger = logging.getLogger("facerec.evaluation")

NEAREST = 10
"""How many of the pairs on the wrong side of the threshold are listed in results.json, nearest and worst
each."""


@dataclass(frozen=True)
class VerificationResult(Result):
    """What the protocol says about one set; `to_dict` gives the entry of results.json.

    Rates are between 0 and 1, distances squared Euclidean between unit vectors, 0 … 4. A number that the set
    cannot support (TAR at a FAR with too few impostor pairs) is None, and `notes` says why.
    """

    accuracy: float
    accuracy_std: float
    best_threshold: float
    xnorm: float
    auc: float | None
    eer: float | None
    tar_at_far: dict[str, float | None]
    pairs: int
    folds: int
    fold_accuracy: list[float]
    fold_threshold: list[float]
    accuracy_noflip: float | None
    accuracy_interval: Interval
    bootstrap: int
    accuracy_exact: float
    """The same with the exact threshold search, whatever `thresholds` says."""
    best_threshold_exact: float
    auc_interval: Interval
    eer_interval: Interval
    tar_at_far_interval: dict[str, Interval]
    interval_over: str | None
    """What the 95 % intervals come from: ``identities`` or ``pairs`` resampled; None: there are none."""
    identities: int | None
    """How many identities the set has, where they are known."""
    thresholds: str
    flip: bool
    genuine_pairs: int
    protocol: str
    notes: list[str]
    distance_N: Floats = field(repr=False)
    issame_N: Bools = field(repr=False)
    wrong_genuine: Ints = field(repr=False)
    """Genuine pairs called different, by the distance to their fold's threshold: nearest first, worst
    last."""
    wrong_impostor: Ints = field(repr=False)
    """Impostor pairs called same, likewise."""
    identity_N2: Ints | None = field(default=None, repr=False)
    source: PairSet | None = field(default=None, repr=False)

    kind = "verification"
    score_key = "accuracy"
    decided = "pairs judged by their fold's threshold"

    def roc(self) -> tuple[Floats, Floats]:
        """False and true accept rates, ascending, from (0, 0) to (1, 1)."""
        return Separation.of(self.distance_N, self.issame_N).roc()

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json, with some of the pairs that were judged wrong."""
        wrong = {"wrong_genuine": self.wrong_genuine, "wrong_impostor": self.wrong_impostor}
        return super().to_dict() | {
            kind: {
                "count": len(pairs),
                "nearest": pairs[:NEAREST].tolist(),
                "worst": pairs[::-1][:NEAREST].tolist(),
            }
            for kind, pairs in wrong.items()
        }

    @property
    def right_X(self) -> Bools:
        """Which pairs were judged right."""
        right_N = np.ones(self.pairs, bool)
        right_N[self.wrong_genuine] = False
        right_N[self.wrong_impostor] = False
        return right_N

    def lines(self) -> list[str]:
        """XNorm, Accuracy-Flip and Best-Threshold, five digits each."""
        accuracy = "Accuracy-Flip" if self.flip else "Accuracy"
        return [
            f"XNorm: {self.xnorm:.5f}",
            f"{accuracy}: {self.accuracy:.5f}+-{self.accuracy_std:.5f}",
            f"Best-Threshold: {self.best_threshold:.5f}",
        ]

    def numbers(self) -> list[Number]:
        """Accuracy, AUC, EER and TAR@FAR."""
        return [
            Number("accuracy", "Accuracy", self.accuracy, self.accuracy_interval, self.accuracy_std),
            Number("auc", "AUC", self.auc, self.auc_interval),
            Number("eer", "EER", self.eer, self.eer_interval, lower_is_better=True),
            *numbers_at("tar_at_far", "TAR @ FAR", self.tar_at_far, self.tar_at_far_interval),
        ]

    def facts(self) -> list[tuple[str, str]]:
        """Protocol, pairs, thresholds, norms and what was judged wrong."""
        exact = f"accuracy {self.accuracy_exact:.5f} at {self.best_threshold_exact:.5f}, mean of folds"
        facts = [
            ("Protocol", self.protocol),
            pair_counts(self.pairs, self.genuine_pairs),
            ("People", "not known" if self.identities is None else f"{self.identities:,}"),
            flip_fact(self.flip),
            ("Threshold", f"{self.best_threshold:.5f}, mean of {self.folds} folds"),
            ("Exact threshold", exact),
        ]
        if self.flip and self.accuracy_noflip is not None:
            facts.append(("Without flip", f"accuracy {self.accuracy_noflip:.5f}"))
        facts.append(("XNorm", f"{self.xnorm:.5f}"))
        if self.interval_over is not None:
            facts.append(("Intervals", f"95 %, {self.bootstrap:,} resamples of the {self.interval_over}"))
        wrong = len(self.wrong_genuine), len(self.wrong_impostor)
        facts.append(("Judged wrong", f"{wrong[0]:,} genuine and {wrong[1]:,} impostor pairs"))
        return facts

    def curves(self) -> list[Series]:
        """The ROC, where there are both kinds of pairs, and the histogram of distances."""
        separation = Separation.of(self.distance_N, self.issame_N)
        curve = separation.curve() if separation.both_kinds else None
        impostors = self.pairs - self.genuine_pairs
        return [
            *rate_curve(curve, "distance", self.genuine_pairs, impostors, self.eer),
            *histogram(separation.histogram(), "distance", self.best_threshold),
        ]


def verify(
    embedding_2ND: npt.ArrayLike | torch.Tensor,
    issame_N: npt.ArrayLike | torch.Tensor,
    *,
    flipped_2ND: npt.ArrayLike | torch.Tensor | None = None,
    folds: int | Ints = 10,
    thresholds: Thresholds = "grid",
    bootstrap: int = 0,
    seed: int = 0,
    identity_2N: npt.ArrayLike | None = None,
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
        issame_N: whether pair i is genuine: booleans, or the numbers 1 and 0; (N,) or (N, 1).
        flipped_2ND: embeddings of the mirrored images, same shape.
        folds: 2 … N; contiguous in file order, sizes as scikit-learn's ``KFold`` where N is not a multiple.
        thresholds: ``grid`` tries 0, 0.01, …, 3.99 as published; ``exact`` the midpoints of the other
            folds' sorted distances.
        bootstrap: number of resamples for 95 % intervals of accuracy, AUC, EER and TAR@FAR; 0 for none.
        seed: of the bootstrap.
        identity_2N: whose each image is, names or numbers: people are resampled then; None: pairs are,
            as if they were independent.

    Returns:
        The accuracies (mean ± population deviation over folds), XNorm (mean norm of all rows given, both
        views), AUC, EER (FAR = FRR on the ROC polyline), TAR at the largest threshold whose FAR ≤ 1e-1 …
        1e-6, and more.

    Raises:
        ConfigError: for `folds` out of range (so also for fewer pairs than folds) or unknown `thresholds`.
        UserError: for arrays whose shapes do not fit, an answer that is neither true nor false, or identities
            that contradict `issame_N`.
        NonFiniteError: for an embedding that holds NaN or infinity; it names the row.
    """
    require(bootstrap >= 0, "eval.bootstrap", bootstrap, "must be 0 (none) or a number of resamples")
    plain = as_floats(embedding_2ND)
    mirrored = None if flipped_2ND is None else as_floats(flipped_2ND)
    same = answers(issame_N)
    check_shapes(plain, mirrored, same)

    compared = compare(plain, mirrored)
    distance_N = compared.distance_N
    noflip = None
    if compared.plain_distance_N is not None:
        noflip = cross_validate(compared.plain_distance_N, same, folds, thresholds).accuracy

    validated = cross_validate(distance_N, same, folds, thresholds)
    exact = validated if thresholds == "exact" else cross_validate(distance_N, same, folds, "exact")
    separation = Separation.of(distance_N, same)
    tar_at_far = separation.tars()
    supported = [target for target, tar in tar_at_far.items() if tar is not None]
    identity_N2 = None if identity_2N is None else numbered_people(identity_2N, same)
    spread: dict[str, Interval] = {}
    if bootstrap:
        drawn = resample(
            distance_N,
            same,
            folds,
            thresholds,
            resamples=bootstrap,
            seed=seed,
            identity_N2=identity_N2,
            far_targets=supported,
        )
        spread = {name: interval(value_R) for name, value_R in drawn.items()}
    over = "pairs" if identity_N2 is None else "identities"
    wrong_genuine, wrong_impostor = _wrong_pairs(distance_N, same, validated)
    return VerificationResult(
        accuracy=validated.accuracy,
        accuracy_std=validated.accuracy_std,
        best_threshold=validated.threshold,
        xnorm=mean_norm(compared.norm, plain.dtype),
        auc=separation.auc(),
        eer=separation.eer(),
        tar_at_far=tar_at_far,
        pairs=len(same),
        folds=len(validated.accuracy_F),
        fold_accuracy=validated.accuracy_F.tolist(),
        fold_threshold=validated.threshold_F.tolist(),
        accuracy_noflip=noflip if mirrored is not None else validated.accuracy,
        accuracy_exact=exact.accuracy,
        best_threshold_exact=exact.threshold,
        accuracy_interval=spread.get("accuracy"),
        auc_interval=spread.get("auc"),
        eer_interval=spread.get("eer"),
        tar_at_far_interval={target: spread.get(target) for target in tar_at_far},
        interval_over=over if bootstrap else None,
        identities=None if identity_N2 is None else int(identity_N2.max()) + 1,
        bootstrap=bootstrap,
        thresholds=thresholds,
        flip=mirrored is not None,
        genuine_pairs=int(same.sum()),
        notes=separation.alike()
        + _notes(compared.zero, tar_at_far, separation)
        + one_sided(same, validated.fold_N),
        protocol=_protocol(len(validated.accuracy_F), mirrored is not None, thresholds),
        distance_N=distance_N,
        issame_N=same,
        wrong_genuine=wrong_genuine,
        wrong_impostor=wrong_impostor,
        identity_N2=identity_N2,
    )


def evaluate_set(
    model: Model, verification_set: PairSet, settings: EvalSettings | None = None
) -> VerificationResult:
    """Embed the distinct images of a verification set once (and their mirrors) and judge its pairs.

    Under torch.distributed every process embeds its share and every process gets the result.

    Args:
        model: backbone and preprocessing; it runs in eval mode and is left as it was.
        verification_set: images, and which of them the pairs are.
        settings: batch size, flip, thresholds, bootstrap, folds, precision; the defaults where None.

    Raises:
        NonFiniteError: naming the image whose embedding is not finite.
        DamagedDataError: naming an image that cannot be decoded.
    """
    from facerec.evaluation.embedding import embed_set
    from facerec.evaluation.settings import EvalSettings

    settings = settings or EvalSettings()
    embedded = embed_set(
        model,
        verification_set,
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
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        identity_2N=verification_set.identity_2N,
    )
    for note in result.notes:
        logger.debug("[%s] %s", verification_set.name, note)
    return replace(result, source=verification_set)


def folds_of(verification_set: PairSet, settings: EvalSettings) -> int:
    """Folds of the cross-validation of a set: as set, else as it was made, else the usual ten."""
    return settings.folds or verification_set.folds or USUAL_FOLDS


def warn_of_folds(verification_set: PairSet, settings: EvalSettings) -> None:
    """Say what makes a poor cross-validation, before anything is embedded.

    Raises:
        ConfigError: there are more folds than pairs.
    """
    name, made, folds = verification_set.name, verification_set.folds, folds_of(verification_set, settings)
    if made and made != folds:
        logger.warning("%s was made in %d folds; eval.folds=%d cuts across them", name, made, folds)
    same_N = np.asarray(verification_set.issame_N)
    for note in one_sided(same_N, fold_of(len(same_N), folds)):
        logger.warning("%s: %s", name, note)


def _wrong_pairs(distance_N: Floats, same: Bools, validated: Folds) -> tuple[Ints, Ints]:
    """Genuine pairs called different and impostor pairs called same by their fold's threshold, nearest
    first."""
    beyond_N = distance_N - validated.threshold_F[validated.fold_N]
    nearest = np.argsort(np.abs(beyond_N), kind="stable")
    called_same = (beyond_N < 0)[nearest]
    return nearest[same[nearest] & ~called_same], nearest[~same[nearest] & called_same]


def one_sided(same_N: Bools, fold_N: Ints) -> list[str]:
    """A warning where folds hold one kind of pairs only, though the set has both."""
    genuine_F = np.bincount(fold_N, same_N)
    mixed_F = (genuine_F > 0) & (genuine_F < np.bincount(fold_N))
    if mixed_F.all() or same_N.all() or not same_N.any():
        return []
    return [
        f"{int((~mixed_F).sum())} of {len(mixed_F)} folds hold one kind of pairs only, so their thresholds "
        "come from an uneven rest: go by AUC and EER rather than by the accuracy"
    ]


def _protocol(folds: int, flip: bool, thresholds: str) -> str:
    view = "flip-TTA (e + e')" if flip else "no flip"
    search = "grid 0, 0.01, …, 3.99" if thresholds == "grid" else "exact threshold search"
    return f"verification, {folds} folds in file order, {view}, {search}"


def _notes(zero: int, tar_at_far: dict[str, float | None], separation: Separation) -> list[str]:
    """What a reader of the numbers has to know about this set."""
    notes = []
    if zero:
        notes.append(f"{zero} embeddings are all zeros; they were compared as they are")
        logger.warning("%d embeddings are all zeros: the backbone says nothing about those images", zero)
    if not separation.both_kinds:
        notes.append("only one kind of pairs (genuine or impostor): no AUC, EER or TAR@FAR")
    else:
        missing = [target for target, tar in tar_at_far.items() if tar is None]
        if missing:
            count = len(separation.impostor_I)
            notes.append(
                f"TAR at FAR {', '.join(missing)} needs more than the {count} impostor pairs of this set"
            )
    return notes
