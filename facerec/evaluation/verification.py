"""The verification protocol with flip-TTA: pairs of embeddings to accuracy, ROC, TAR@FAR and what goes with
them.

The protocol of LFW, CFP, AgeDB-30, CALFW, CPLFW and VGG2-FP as the widespread scripts compute it; equal
embeddings give equal numbers to the last digit.

Shape suffixes: N pairs, 2N pictures (rows 2i and 2i + 1 are pair i), D embedding size, F folds, P distinct
pictures."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facerec.errors import NonFiniteError, UserError, require
from facerec.evaluation.folds import Folds, Ints, Thresholds, bootstrap_accuracy, cross_validate, interval
from facerec.evaluation.metrics import Bools, Floats, Separation

if TYPE_CHECKING:
    import torch

    from facerec.evaluation.embedding import PairSet
    from facerec.evaluation.model import Model
    from facerec.evaluation.settings import EvalSettings

logger = logging.getLogger("facerec.evaluation")

NEAREST = 10
"""How many of the pairs on the wrong side of the threshold are listed in results.json, nearest and worst
each."""

_ROWS = 256  # rows worked on at once: their intermediate results stay in the cache


_REPORTED = (
    *("accuracy", "accuracy_std", "best_threshold", "xnorm", "auc", "eer", "tar_at_far", "pairs", "folds"),
    *("fold_accuracy", "fold_threshold", "accuracy_noflip", "accuracy_interval", "bootstrap"),
    *("thresholds", "flip", "genuine_pairs", "protocol", "notes"),
)


@dataclass(frozen=True)
class VerificationResult:
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
    accuracy_interval: tuple[float, float] | None
    bootstrap: int
    thresholds: str
    flip: bool
    genuine_pairs: int
    notes: list[str]
    protocol: str
    """The protocol's name, as it is to be said with the number."""
    distance_N: Floats = field(repr=False)
    issame_N: Bools = field(repr=False)
    wrong_genuine: Ints = field(repr=False)
    """Genuine pairs called different, by the distance to their fold's threshold: nearest first, worst
    last."""
    wrong_impostor: Ints = field(repr=False)
    """Impostor pairs called same, likewise."""
    source: PairSet | None = field(default=None, repr=False)
    """The set that was evaluated, for its pictures; None where only embeddings were given."""

    def roc(self) -> tuple[Floats, Floats]:
        """False and true accept rates, ascending, from (0, 0) to (1, 1)."""
        return Separation.of(self.distance_N, self.issame_N).roc()

    def to_dict(self) -> dict[str, Any]:
        """The entry of results.json: plain numbers, lists and words at full precision, None for what is
        undefined."""
        entry = {name: getattr(self, name) for name in _REPORTED}
        if self.accuracy_interval is not None:
            entry["accuracy_interval"] = list(self.accuracy_interval)
        for kind, wrong in (("genuine", self.wrong_genuine), ("impostor", self.wrong_impostor)):
            entry[f"wrong_{kind}"] = {
                "count": len(wrong),
                "nearest": wrong[:NEAREST].tolist(),
                "worst": wrong[::-1][:NEAREST].tolist(),
            }
        return entry

    @property
    def score(self) -> float:
        """The one number to compare runs by: the accuracy."""
        return self.accuracy

    def log_lines(self, name: str, step: int | None = None) -> list[str]:
        """The lines of the field's habit: XNorm, Accuracy-Flip and Best-Threshold, five digits each."""
        tag = f"[{name}][{step or 0}]"
        accuracy = "Accuracy-Flip" if self.flip else "Accuracy"
        return [
            f"{tag}XNorm: {self.xnorm:.5f}",
            f"{tag}{accuracy}: {self.accuracy:.5f}+-{self.accuracy_std:.5f}",
            f"{tag}Best-Threshold: {self.best_threshold:.5f}",
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
        issame_N: whether pair i is genuine.
        flipped_2ND: embeddings of the mirrored pictures, same shape.
        folds: 2 … N; contiguous in file order, sizes as scikit-learn's ``KFold`` where N is not a multiple.
        thresholds: ``grid`` tries 0, 0.01, …, 3.99 as published; ``exact`` the midpoints of the other
            folds' sorted distances.
        bootstrap: number of resamples of the pairs for a 95 % interval of the accuracy; 0 for none.
        seed: of the bootstrap.

    Returns:
        The accuracies (mean ± population deviation over folds), XNorm (mean norm of all rows given, both
        views), AUC, EER (FAR = FRR on the ROC polyline), TAR at the largest threshold whose FAR ≤ 1e-1 …
        1e-6, and more.

    Raises:
        ConfigError: for `folds` out of range (so also for fewer pairs than folds) or unknown `thresholds`.
        UserError: for arrays whose shapes do not fit.
        NonFiniteError: for an embedding that holds NaN or infinity; it names the row.
    """
    require(bootstrap >= 0, "eval.bootstrap", bootstrap, "must be 0 (none) or a number of resamples")
    plain = _floats(embedding_2ND)
    mirrored = None if flipped_2ND is None else _floats(flipped_2ND)
    same = np.asarray(_numpy(issame_N)).astype(bool).reshape(-1)
    _check_shapes(plain, mirrored, same)

    compared = _compare(plain, mirrored)
    distance_N = compared.distance_N
    noflip = None
    if compared.plain_distance_N is not None:
        noflip = cross_validate(compared.plain_distance_N, same, folds, thresholds).accuracy

    validated = cross_validate(distance_N, same, folds, thresholds)
    separation = Separation.of(distance_N, same)
    spread = None
    if bootstrap:
        spread = interval(
            bootstrap_accuracy(distance_N, same, folds, thresholds, resamples=bootstrap, seed=seed)
        )
    tar_at_far = separation.tars()
    wrong_genuine, wrong_impostor = _wrong_pairs(distance_N, same, validated)
    return VerificationResult(
        accuracy=validated.accuracy,
        accuracy_std=validated.accuracy_std,
        best_threshold=validated.threshold,
        xnorm=_mean_norm(compared.norm, plain.dtype),
        auc=separation.auc(),
        eer=separation.eer(),
        tar_at_far=tar_at_far,
        pairs=len(same),
        folds=len(validated.accuracy_F),
        fold_accuracy=validated.accuracy_F.tolist(),
        fold_threshold=validated.threshold_F.tolist(),
        accuracy_noflip=noflip if mirrored is not None else validated.accuracy,
        accuracy_interval=spread,
        bootstrap=bootstrap,
        thresholds=thresholds,
        flip=mirrored is not None,
        genuine_pairs=int(same.sum()),
        notes=_notes(compared.zero, tar_at_far, separation),
        protocol=_protocol(len(validated.accuracy_F), mirrored is not None, thresholds),
        distance_N=distance_N,
        issame_N=same,
        wrong_genuine=wrong_genuine,
        wrong_impostor=wrong_impostor,
    )


def evaluate_set(
    model: Model, verification_set: PairSet, settings: EvalSettings | None = None
) -> VerificationResult:
    """Embed the distinct pictures of a verification set once (and their mirrors) and judge its pairs.

    Under torch.distributed every process embeds its share and every process gets the result.

    Args:
        model: backbone and preprocessing; it runs in eval mode and is left as it was.
        verification_set: pictures, and which of them the pairs are.
        settings: batch size, flip, thresholds, bootstrap, folds, precision; the defaults where None.

    Raises:
        NonFiniteError: naming the picture whose embedding is not finite.
        DamagedDataError: naming a picture that cannot be decoded.
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
        folds=settings.folds,
        thresholds=settings.thresholds,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    for note in result.notes:
        logger.debug("[%s] %s", verification_set.name, note)
    return replace(result, source=verification_set)


def _numpy(array: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    """A NumPy view of a NumPy array, list or torch tensor (bfloat16 widened: NumPy does not have it)."""
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(array)


def _floats(array: npt.ArrayLike | torch.Tensor) -> Floats:
    """float32 or float64, rows contiguous."""
    given = _numpy(array)
    wide = given if given.dtype in (np.float32, np.float64) else given.astype(np.float32)
    return np.ascontiguousarray(wide)


def _check_shapes(plain: Floats, mirrored: Floats | None, same: Bools) -> None:
    if plain.ndim != 2 or len(plain) != 2 * len(same):
        raise UserError(
            f"embeddings of shape {plain.shape} do not fit {len(same)} pairs: rows 2i and 2i+1 must be "
            f"pair i, so ({2 * len(same)}, D) is expected"
        )
    if mirrored is not None and mirrored.shape != plain.shape:
        raise UserError(f"mirrored embeddings have shape {mirrored.shape}, the plain ones {plain.shape}")


def _row_norms(rows: Floats) -> Floats:
    """Euclidean norms in the rows' own precision (those that over- or underflow in it, from double
    precision)."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    for row in np.flatnonzero(~((norm > 1e-15) & (norm < np.inf))):
        largest = np.abs(rows[row]).max(initial=0).astype(np.float64)
        if 0 < largest < np.inf:
            norm[row] = largest * np.linalg.norm(rows[row] / largest)
    return norm


def _check_finite(norm_2N: Floats, first_row: int, what: str) -> None:
    broken = np.flatnonzero(~np.isfinite(norm_2N))
    if len(broken):
        row = first_row + int(broken[0])
        which = "first" if row % 2 == 0 else "second"
        raise NonFiniteError(
            f"{what} in row {row} (pair {row // 2}, {which} picture) is not finite; "
            "check the model's weights and precision"
        )


def _normalised(rows: Floats, norm: Floats) -> Floats:
    """Rows of unit length, zero rows left 0: the same operations as scikit-learn's ``normalize``, bit for
    bit."""
    return rows / np.where(norm == 0, norm.dtype.type(1), norm)[:, None]


def _squared_distances(unit: Floats) -> Floats:
    """‖f1 − f2‖² of rows 2i and 2i + 1."""
    difference = unit[0::2] - unit[1::2]
    return np.sum(np.square(difference, out=difference), 1)


@dataclass(frozen=True)
class _Compared:
    """Distances of the pairs, of the plain pictures' embeddings alone where there are mirrored ones, the
    norms of all rows given, and how many of the compared rows are zero."""

    distance_N: Floats
    plain_distance_N: Floats | None
    norm: Floats
    zero: int


def _compare(plain: Floats, mirrored: Floats | None) -> _Compared:
    """One pass over the rows in blocks that stay in the cache. Rows do not see each other: blocks change
    nothing."""
    views = [plain] if mirrored is None else [plain, mirrored]
    distance = np.empty(len(plain) // 2, dtype=plain.dtype)
    plain_distance = np.empty_like(distance)
    norm = np.empty((len(views), len(plain)), dtype=plain.dtype)
    zero = 0
    for start in range(0, len(plain), _ROWS):
        at, pair = slice(start, start + _ROWS), slice(start // 2, (start + _ROWS) // 2)
        rows = plain[at]
        norm[0, at] = _row_norms(rows)
        _check_finite(norm[0, at], start, "embedding")
        plain_distance[pair] = _squared_distances(_normalised(rows, norm[0, at]))
        used = norm[0, at]
        if mirrored is not None:
            norm[1, at] = _row_norms(mirrored[at])
            _check_finite(norm[1, at], start, "embedding of the mirrored picture")
            rows = rows + mirrored[at]
            used = _row_norms(rows)
            distance[pair] = _squared_distances(_normalised(rows, used))
        zero += int((used == 0).sum())
    if mirrored is None:
        return _Compared(plain_distance, None, norm.reshape(-1), zero)
    return _Compared(distance, plain_distance, norm.reshape(-1), zero)


def _mean_norm(norms: Floats, dtype: np.dtype[Any]) -> float:
    """Mean in double precision, so that order does not matter, rounded to the embeddings' precision as
    published."""
    return float(dtype.type(norms.mean(dtype=np.float64)))


def _wrong_pairs(distance_N: Floats, same: Bools, validated: Folds) -> tuple[Ints, Ints]:
    """Genuine pairs called different and impostor pairs called same by their fold's threshold, nearest
    first."""
    beyond_N = distance_N - validated.threshold_F[validated.fold_N]
    nearest = np.argsort(np.abs(beyond_N), kind="stable")
    called_same = (beyond_N < 0)[nearest]
    return nearest[same[nearest] & ~called_same], nearest[~same[nearest] & called_same]


def _protocol(folds: int, flip: bool, thresholds: str) -> str:
    view = "flip-TTA (e + e')" if flip else "no flip"
    search = "grid 0, 0.01, …, 3.99" if thresholds == "grid" else "exact threshold search"
    return f"verification, {folds} folds in file order, {view}, {search}"


def _notes(zero: int, tar_at_far: dict[str, float | None], separation: Separation) -> list[str]:
    """What a reader of the numbers has to know about this set."""
    notes = []
    if zero:
        notes.append(f"{zero} embeddings are all zeros; they were compared as they are")
        logger.warning("%d embeddings are all zeros: the backbone says nothing about those pictures", zero)
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
