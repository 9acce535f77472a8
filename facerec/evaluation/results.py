"""Results: what every protocol gives for each of its tests, and says of itself in tables, logs and charts."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from facerec import distributed
from facerec.errors import counted
from facerec.evaluation.metrics import Metric
from facerec.evaluation.statistics.bootstrap import Interval
from facerec.evaluation.statistics.separation import Separation
from facerec.files import replacing

if TYPE_CHECKING:
    from facerec.models.model import Model
    from facerec.packs.verification import VerificationSet


logger = logging.getLogger("facerec.evaluation")


@dataclass(frozen=True)
class Number:
    """One number of a result.

    Attributes:
        key: ``tar_at_far_1e-3``.
        label: in tables and reports, ``TAR @ FAR 1e-3``.
        value: None where the set cannot support it.
        interval: 95 % interval, where there is one.
        deviation: population deviation over the folds, where there are folds.
        lower_is_better: of two models the one with the lower value is better.
        trusted: False where the set is judged by another number, because this one may mislead.
    """

    key: str
    label: str
    value: float | None
    interval: Interval = None
    deviation: float | None = None
    lower_is_better: bool = False
    trusted: bool = True

    @property
    def text(self) -> str:
        """``0.98867 ± 0.00386``, a dash where there is no value."""
        if self.value is None:
            return "–"
        return f"{self.value:.5f}" + ("" if self.deviation is None else f" ± {self.deviation:.5f}")

    @property
    def phrase(self) -> str:
        """The label within a sentence: ``accuracy``, ``AUC``."""
        return self.label if self.label[1:2].isupper() else self.label.lower()

    @property
    def interval_text(self) -> str:
        """``0.98117–0.99350``; empty where there is none."""
        return "" if self.interval is None else f"{self.interval[0]:.5f}–{self.interval[1]:.5f}"


class HardPair(NamedTuple):
    """A pair, the distance of its images, True where it was judged wrong, and its identities if known."""

    pair: int
    distance: float
    wrong: bool
    identities: tuple[str, str] | None

    @property
    def names(self) -> str:
        """Whose images they are: one name, or two with a stroke between; empty where not known."""
        return " / ".join(dict.fromkeys(self.identities or ()))


class HardPairs(NamedTuple):
    """The worst pairs of a kind, ``genuine`` or ``impostor``, and how many of all were judged wrong."""

    kind: str
    wrong: int
    pairs: list[HardPair]


_SAID = ("protocol", "notes")  # stand last in an entry of results.json


class Series(NamedTuple):
    """One curve or histogram of a result, to be drawn by whoever reports it.

    `chart` names the chart it belongs to, and `data` holds arrays and plain values:

    - ``roc`` and ``tpir``: far, tar, threshold, scale (``distance`` or ``cosine``), genuine and impostor (how
      many trials), eer;
    - ``cmc``, ``distractors``, ``erc`` and ``reliability``: x, y, and a note where there is one;
    - ``histograms``: edges, genuine, impostor (counts), scale, threshold (None: no one threshold).
    """

    chart: str
    data: dict[str, Any]


class Table(NamedTuple):
    """A table of a result beyond its numbers: title, what its columns mean, column names, rows; a finding."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]
    finding: str = ""


@dataclass(frozen=True, kw_only=True)
class Result(ABC):
    """Result of a protocol on one test; a subclass adds its numbers.

    Fields with ``repr=False`` stay out of results.json.

    Attributes:
        kind: results of one kind share a table.
        protocol: its name, as it is to be said with the numbers.
        notes: what a reader of the numbers has to know.
        score_key: key of the number that runs are compared by.
        right_X: which decisions were right, for the paired comparison of models.
        decided: what these decisions are, e.g. pairs judged by their fold's threshold.
        identity_N2: identities of the two images of each decision, numbers from 0, where it is about a pair
            and they are known.
        source: the images of these pairs.
        interval_over: unit that is resampled for the 95 % intervals, where it is to be said with the numbers.
        curves: what can be drawn.
        tables: what is to be read besides the numbers.
    """

    kind: ClassVar[str]
    protocol: str
    notes: list[str]
    score_key: str = field(repr=False)
    decided: str = field(repr=False)
    right_X: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    identity_N2: npt.NDArray[np.integer] | None = field(default=None, repr=False)
    source: VerificationSet | None = field(default=None, repr=False)
    interval_over: str | None = field(default=None, repr=False)
    curves: list[Series] = field(default_factory=list, repr=False)
    tables: list[Table] = field(default_factory=list, repr=False)

    @abstractmethod
    def numbers(self) -> list[Number]:
        """The numbers to quote, the one to compare by first."""

    @abstractmethod
    def facts(self) -> list[tuple[str, str]]:
        """Return the conditions of the numbers, by name; the protocol first."""

    @abstractmethod
    def lines(self) -> list[str]:
        """Lines for the log, without the test's name and the step."""

    @property
    def conditions(self) -> str:
        """The conditions in a few words, for the title of a figure."""
        return self.protocol

    def hardest(self, count: int) -> list[HardPairs]:
        """The genuine pairs farthest apart and the impostor pairs nearest to each other, where known."""
        return []

    def series(self, chart: str) -> dict[str, Any] | None:
        """Data of the first curve for `chart`, if there is one."""
        return next((data for kind, data in self.curves if kind == chart), None)

    def judged_by(self, key: str) -> Result:
        """The same, judged by another of its numbers, where it has decisions for that."""
        return self

    @property
    def headline(self) -> Number | None:
        """The one number to quote; None where the set supports none."""
        supported = [number for number in self.numbers() if number.value is not None]
        return next((number for number in supported if number.key == self.score_key), None)

    @property
    def score(self) -> float:
        """The one number to compare runs by, NaN where the set supports none."""
        return float("nan") if self.headline is None else float(self.headline.value or 0)

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json: plain values at full precision, None for what is undefined."""
        names = [one.name for one in fields(self) if one.repr]
        return {name: _plain(getattr(self, name)) for name in sorted(names, key=_SAID.__contains__)}

    def log_lines(self, name: str, step: int | None = None) -> list[str]:
        """The lines of the field's habit: ``[lfw][60000]Accuracy-Flip: 0.98867+-0.00386``."""
        return [f"[{name}][{step or 0}]{line}" for line in self.lines()]


@dataclass(frozen=True, kw_only=True)
class PairResult(Result):
    """Metrics of judged pairs, which are attributes under their names in results.json: ``auc``,
    ``auc_interval``.

    Attributes:
        values: what `facerec.evaluation.metrics.measure` gave, and the intervals.
        metrics: those that were chosen.
        pairs, genuine_pairs: numbers of them.
    """

    values: dict[str, Any] = field(repr=False)
    metrics: Mapping[str, Metric] = field(repr=False)
    pairs: int
    genuine_pairs: int

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"{type(self).__name__} has no {name}; its metrics are {', '.join(values)}")
        return values[name]

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json."""
        return _plain(self.values) | super().to_dict()

    def numbers(self) -> list[Number]:
        """The metrics, in the order in which they were chosen."""
        numbers = []
        for name, metric in self.metrics.items():
            value, interval = self.values[name], self.values.get(f"{name}_interval")
            if isinstance(value, dict):
                numbers += numbers_at(name, metric.label, value, interval or {})
                continue
            deviation = self.values.get(f"{name}_std")
            numbers.append(Number(name, metric.label, value, interval, deviation, metric.lower_is_better))
        return numbers

    @property
    def conditions(self) -> str:
        return counted(self.pairs, "pair")

    def _pair_facts(self) -> list[tuple[str, str]]:
        counts = f"{self.genuine_pairs:,} genuine, {self.pairs - self.genuine_pairs:,} impostor"
        return [("Protocol", self.protocol), ("Pairs", f"{self.pairs:,} ({counts})")]


def numbers_at(
    key: str, label: str, values: Mapping[str, float | None], intervals: Mapping[str, Interval]
) -> list[Number]:
    """A number for each operating point: ``tar_at_far_1e-3``, ``TAR @ FAR 1e-3`` and so on."""
    return [Number(f"{key}_{at}", f"{label} {at}", value, intervals.get(at)) for at, value in values.items()]


def rate_series(
    separation: Separation, scale: str, eer: float | None = None, chart: str = "roc"
) -> list[Series]:
    """True over false accept rates, where there are both kinds of trials."""
    curve = separation.curve()
    if curve is None:
        return []
    kept = np.isfinite(curve.distance_V)  # beyond are probes whose mate was not first: never found
    threshold = curve.distance_V if scale == "distance" else -curve.distance_V
    data = {"far": curve.far_V[kept], "tar": curve.tar_V[kept], "threshold": threshold[kept]}
    counts = {"genuine": len(separation.genuine_G), "impostor": len(separation.impostor_I)}
    return [Series(chart, data | counts | {"scale": scale, "eer": eer})]


def histogram_series(separation: Separation, scale: str, threshold: float | None = None) -> list[Series]:
    """Counts of both kinds; cosines ascend from left to right, as distances do."""
    edges, genuine, impostor = separation.histogram()
    if scale == "cosine":
        edges, genuine, impostor = -edges[::-1], genuine[::-1], impostor[::-1]
    data = {"edges": edges, "genuine": genuine, "impostor": impostor}
    return [Series("histograms", data | {"scale": scale, "threshold": threshold})]


def flip_fact(flip: bool) -> tuple[str, str]:
    """The fact of whether mirrored images were embedded, too."""
    return "Flipped", "yes: f = e(image) + e(mirrored image)" if flip else "no"


def interval_facts(intervals: Mapping[str, Interval], resampled: str) -> list[tuple[str, str]]:
    """The fact of what is resampled and what is held fixed, where there are 95 % intervals."""
    return [("Intervals", f"95 %, {resampled}")] if any(intervals.values()) else []


def results_document(
    results: Mapping[str, Result],
    model: Model,
    *,
    step: int | None = None,
    ckpt: str | None = None,
) -> dict[str, Any]:
    """Return the contents of results.json: an entry per target, which model it was, and its preprocessing."""
    return {
        "targets": {name: result.to_dict() for name, result in results.items()},
        "ckpt": ckpt if ckpt is not None else (None if model.path is None else str(model.path)),
        "step": model.step if step is None else step,
        "preprocessing": model.input.to_dict(),
        **({"weights": model.weights} if model.weights != "raw" else {}),
    }


def write_results(path: str | Path, document: Mapping[str, Any]) -> Path:
    """Write results.json at full precision.

    Raises:
        StorageError: it could not be written; a file that was there before still is.
    """
    path = Path(path)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")
    return path


def _plain(value: Any) -> Any:
    """The value with lists for tuples, as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


# Notes ---------------------------------------------------------------------------------------------------


class Caution(str):
    """A note that questions the numbers themselves."""

    __slots__ = ()


def warn(note: str, name: str = "") -> list[str]:
    """Log a caution on rank 0, of the test `name`, and return it as the notes of a result."""
    if distributed.rank() == 0:
        logger.warning("%s", f"{name}: {note}" if name else note)
    return [Caution(note)]


def alike_notes(separation: Separation) -> list[str]:
    """A caution where genuine and impostor pairs all have one distance."""
    said = "all pairs are equally far apart: the embeddings tell nobody from anybody, and no number means "
    return warn(f"{said}anything") if separation.alike else []


def unsupported(values: Mapping[str, float | None], what: str, count: int, of: str) -> list[str]:
    """A note on the values that are None for want of trials."""
    missing = [key for key, value in values.items() if value is None]
    return [f"{what} {', '.join(missing)} needs more than the {count} {of}"] if missing else []


def log_notes(results: Mapping[str, Result], said: set[tuple[str, str]] | None = None) -> None:
    """Log the protocol, interval and notes that go with the numbers; cautions were logged when found.

    `said` keeps what was logged before of each test, which is left out, but for the interval.
    """
    said = set() if said is None else said
    for name, result in results.items():
        number = result.headline
        lines = [result.protocol, *(note for note in result.notes if not isinstance(note, Caution))]
        for line in lines:
            if (name, line) not in said:
                logger.info("%s: %s", name, line)
        said.update((name, line) for line in lines)
        if result.interval_over is not None and number is not None and number.interval is not None:
            found = (name, number.phrase, *number.interval, result.interval_over)
            logger.info("%s: %s %.5f to %.5f (95 %% interval over %s)", *found)
