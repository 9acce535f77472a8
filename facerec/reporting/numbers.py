"""What a result is quoted by: its numbers with their 95 % intervals, and the facts to stand beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from facerec.evaluation.protocols.identification import IdentificationResult, MegafaceResult
from facerec.evaluation.protocols.settings import Result
from facerec.evaluation.protocols.templates import TemplateResult
from facerec.evaluation.protocols.verification import VerificationResult

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Number:
    """One number of a result.

    Attributes:
        key: its column in results.csv, e.g. ``tar_at_far_1e-3``.
        label: for people, e.g. ``TAR @ FAR 1e-3``.
        value: None where the set cannot support it.
        interval: 95 % interval, where there is one.
        deviation: population deviation over the folds, where there are folds.
    """

    key: str
    label: str
    value: float | None
    interval: Interval = None
    deviation: float | None = None

    @property
    def text(self) -> str:
        """``0.98867 ± 0.00386``, a dash where there is no value."""
        if self.value is None:
            return "–"
        return f"{self.value:.5f}" + ("" if self.deviation is None else f" ± {self.deviation:.5f}")

    @property
    def interval_text(self) -> str:
        """``0.98117–0.99350``; empty where there is none."""
        return "" if self.interval is None else f"{self.interval[0]:.5f}–{self.interval[1]:.5f}"


def numbers_of(result: Result) -> list[Number]:
    """The numbers of any protocol's result, the one to compare by first."""
    if isinstance(result, VerificationResult):
        return [
            Number("accuracy", "Accuracy", result.accuracy, result.accuracy_interval, result.accuracy_std),
            Number("auc", "AUC", result.auc, result.auc_interval),
            Number("eer", "EER", result.eer, result.eer_interval),
            *_at("tar_at_far", "TAR @ FAR", result.tar_at_far, result.tar_at_far_interval),
        ]
    if isinstance(result, TemplateResult):
        return [
            *_at("tar_at_far", "TAR @ FAR", result.tar_at_far, result.tar_at_far_interval),
            Number("auc", "AUC", result.auc),
            Number("eer", "EER", result.eer),
        ]
    if isinstance(result, IdentificationResult):
        return [
            *_at("rank", "Rank", result.rank, result.rank_interval),
            *_at("tpir_at_fpir", "TPIR @ FPIR", result.tpir_at_fpir, result.tpir_at_fpir_interval),
        ]
    assert isinstance(result, MegafaceResult)
    rank1 = {f"{int(cut):,}": value for cut, value in result.rank1.items()}
    spread = {f"{int(cut):,}": value for cut, value in result.rank1_interval.items()}
    return [
        *_at("rank1", "Rank 1 among", rank1, spread),
        *_at("tar_at_far", "TAR @ FAR", result.tar_at_far, result.tar_at_far_interval),
    ]


def headline_of(result: Result) -> Number | None:
    """The one number to quote: the `score` that results are compared by; None where the set supports none."""
    numbers = [number for number in numbers_of(result) if number.value is not None]
    return next((number for number in numbers if number.key == result.score_key), None)


def facts_of(result: Result) -> list[tuple[str, str]]:
    """What must be said with the numbers, by name; the protocol first."""
    facts = [("Protocol", result.protocol)]
    if isinstance(result, VerificationResult):
        impostors = result.pairs - result.genuine_pairs
        facts += [
            ("Pairs", f"{result.pairs:,} ({result.genuine_pairs:,} genuine, {impostors:,} impostor)"),
            ("People", "not known" if result.identities is None else f"{result.identities:,}"),
            ("Flipped", _flipped(result.flip)),
            ("Threshold", f"{result.best_threshold:.5f}, mean of {result.folds} folds"),
            (
                "Exact threshold",
                f"accuracy {result.accuracy_exact:.5f} at {result.best_threshold_exact:.5f}, mean of folds",
            ),
        ]
        if result.flip and result.accuracy_noflip is not None:
            facts.append(("Without flip", f"accuracy {result.accuracy_noflip:.5f}"))
        facts.append(("XNorm", f"{result.xnorm:.5f}"))
        if result.interval_over is not None:
            facts.append(("Intervals", f"95 %, {result.bootstrap:,} resamples of the {result.interval_over}"))
        wrong = len(result.wrong_genuine), len(result.wrong_impostor)
        facts.append(("Judged wrong", f"{wrong[0]:,} genuine and {wrong[1]:,} impostor pairs"))
    elif isinstance(result, TemplateResult):
        impostors = result.pairs - result.genuine_pairs
        facts += [
            ("Pairs", f"{result.pairs:,} ({result.genuine_pairs:,} genuine, {impostors:,} impostor)"),
            ("Templates", f"{result.templates:,} of {result.images:,} images"),
            ("Flipped", _flipped(result.flip)),
            ("Detector score", "as weight of each image" if result.detector_score else "not used"),
        ]
        if any(result.tar_at_far_interval.values()):
            facts.append(("Intervals", "95 %, people of the genuine pairs resampled, thresholds held fixed"))
    elif isinstance(result, IdentificationResult):
        facts += [
            ("Probes", f"{result.probes:,} ({result.mated_probes:,} with a mate in the gallery)"),
            ("Gallery", f"{result.gallery:,} entries of {result.identities:,} people"),
            ("Distractors", f"{result.distractors:,}"),
        ]
        if any(result.rank_interval.values()):
            facts.append(("Intervals", "95 %, people of the mated probes resampled, thresholds held fixed"))
    elif isinstance(result, MegafaceResult):
        facts += [
            (
                "Probes",
                f"{result.probes:,} ({result.identities:,} people, {result.mate_pairs:,} mate pairs)",
            ),
            ("Distractors", f"{result.distractors:,}"),
        ]
        if any(result.rank1_interval.values()):
            facts.append(("Intervals", "95 %, people of the probes resampled, distractors held fixed"))
    return facts


def labels_of(results: Iterable[Result]) -> list[str]:
    """Labels of the numbers that at least one of the results supports, in order: the columns of a table."""
    labels: dict[str, bool] = {}
    for result in results:
        for number in numbers_of(result):
            labels[number.label] = labels.get(number.label, False) or number.value is not None
    return [label for label, supported in labels.items() if supported]


def kind_of(result: Result) -> str:
    """Results of one kind share a table: verification, templates, identification or megaface."""
    kinds: dict[type, str] = {
        VerificationResult: "verification",
        TemplateResult: "templates",
        IdentificationResult: "identification",
        MegafaceResult: "megaface",
    }
    return kinds[type(result)]


def _at(
    key: str, label: str, values: Mapping[str, float | None], intervals: Mapping[str, Interval]
) -> list[Number]:
    return [
        Number(f"{key}_{at.replace(',', '')}", f"{label} {at}", value, intervals.get(at))
        for at, value in values.items()
    ]


def _flipped(flip: bool) -> str:
    return "yes: f = e(image) + e(mirrored image)" if flip else "no"
