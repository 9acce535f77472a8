"""Details of a verification result: operating points, one of them for use, calibration, rejection by
quality, rates of groups.

Shape suffixes: N pairs; "2" is the two images of a pair.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from facerec.errors import ConfigError, DamagedDataError, counted, require
from facerec.evaluation.results import Series, Table, warn
from facerec.evaluation.settings import EvalSettings
from facerec.evaluation.statistics.operating import (
    FITS,
    Point,
    cross_fitted,
    error_versus_reject,
    fit_logistic,
    group_rates,
    interval_text,
    largest_gap,
    operating_points,
    reliability,
)
from facerec.evaluation.statistics.separation import Floats, Separation
from facerec.evaluation.verify import VerificationResult
from facerec.models.model import Threshold
from facerec.packs.text import is_number, text_lines
from facerec.packs.verification import VerificationSet


@dataclass(frozen=True)
class Side:
    """What is known of the pairs besides their images.

    Attributes:
        groups: by the name of a column (sex, age, pose, …), the group of each image, (N, 2); empty: none.
        quality_N2: quality of each image, where a file gives it.
    """

    groups: Mapping[str, np.ndarray]
    quality_N2: Floats | None = None


def read_side(of: VerificationSet, settings: EvalSettings, *, say: bool = False) -> Side:
    """Read the files that `eval.groups` and `eval.quality` name; `say` warns of identities without a group.

    Raises:
        MissingDataError, DamagedDataError: a file is missing, malformed or does not fit the set.
        ConfigError: groups are given by identity, and the set does not know its identities.
    """
    groups = {} if settings.groups is None else _groups(Path(settings.groups), of, say)
    if settings.quality in (None, "norm"):
        return Side(groups)
    path = Path(settings.quality or "")
    rows = _by_pair(path, of, ("first", "second"))
    try:
        quality_N2 = np.array([[float(row["first"]), float(row["second"])] for row in rows])
    except ValueError as error:
        raise DamagedDataError(f"{path}: a quality must be a number ({error})") from None
    if not np.isfinite(quality_N2).all():
        raise DamagedDataError(f"{path}: a quality must be a finite number")
    return Side(groups, quality_N2)


def _groups(path: Path, of: VerificationSet, say: bool) -> dict[str, np.ndarray]:
    header, rows = _table(path)
    if header[0] == "pair":
        ordered = _by_pair(path, of, header[1:])
        return {key: np.array([[row[key]] * 2 for row in ordered]) for key in header[1:]}
    if header[0] != "identity" or len(header) < 2:
        raise DamagedDataError(
            f"{path}, line 1: must be identity,sex,… or pair,pose,…, not {','.join(header)}"
        )
    if of.identity_2N is None:
        hint = (
            f"{of.name} does not know its identities; give a file with a column pair, or {of.name}.people.tsv"
        )
        raise ConfigError("eval.groups", path, hint)
    known: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 2):
        if known.setdefault(row["identity"], row) != row:
            raise DamagedDataError(f"{path}, row {number}: {row['identity']} stood before, with other values")
    names = of.identity_2N.tolist()
    unknown = len(set(names) - set(known))
    if unknown == len(set(names)):
        raise DamagedDataError(
            f"{path}: has none of the identities of {of.name}, such as {names[0]}, but others, such as "
            f"{rows[0]['identity']}"
        )
    if unknown and say:
        warn(f"{path} lacks {counted(unknown, 'identity')} whose pairs are in no group", of.name)
    empty = dict.fromkeys(header, "")
    return {
        key: np.array([known.get(name, empty)[key] for name in names]).reshape(-1, 2) for key in header[1:]
    }


def _by_pair(path: Path, of: VerificationSet, columns: tuple[str, ...] | list[str]) -> list[dict[str, str]]:
    """The rows of a file with a row for each pair, by the pair's number from 0."""
    header, rows = _table(path)
    if header[0] != "pair" or any(column not in header for column in columns):
        raise DamagedDataError(f"{path}, line 1: must be pair,{','.join(columns)}, not {','.join(header)}")
    numbered = {int(row["pair"]): row for row in rows if is_number(row["pair"])}
    if len(numbered) != len(rows) or sorted(numbered) != list(range(len(of))):
        raise DamagedDataError(
            f"{path}: must have a row for each of the {counted(len(of), 'pair')} of {of.name}, "
            f"numbered from 0; it "
            f"has {len(rows):,}"
        )
    return [numbered[pair] for pair in range(len(of))]


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        rows = [[field.strip() for field in row] for row in csv.reader(text_lines(path)) if row]
    except csv.Error as error:
        raise DamagedDataError(f"{path} is not CSV: {error}") from None
    if len(rows) < 2:
        raise DamagedDataError(f"{path}: must have a line of column names and rows below it")
    header, *body = rows
    if len(set(header)) != len(header) or not all(header):
        raise DamagedDataError(f"{path}, line 1: must name each column, once: {','.join(header)}")
    for number, row in enumerate(rows, 1):
        if not all(field.isprintable() for field in row):
            raise DamagedDataError(f"{path}, row {number}: holds control characters")
        if len(row) != len(header):
            raise DamagedDataError(
                f"{path}, row {number}: has {counted(len(row), 'field')}, the first line {len(header)}"
            )
    return header, [dict(zip(header, row, strict=True)) for row in body]


def detailed(result: VerificationResult, side: Side, settings: EvalSettings) -> VerificationResult:
    """The result with its details, as entries of results.json, tables and curves."""
    separation = Separation.of(result.distance_N, result.issame_N)
    points = operating_points(separation, result.values.get("tar_at_far_interval") or {})
    entry = {"operating_points": {key: one._asdict() for key, one in points.items()}}
    result = _with(result, entry, [_points_table(points)] if points else [])
    if settings.calibration is not None:
        result = _calibrated(result, settings.calibration)
    # One threshold for groups and rejection: that at FMR 1e-3, or the smallest above it that there is.
    usable = [key for key in points if float(key) >= 1e-3]
    if usable:
        judged = usable[-1], points[usable[-1]].threshold
        result = _rejected(result, side.quality_N2, settings.quality, *judged)
        for name, group_N2 in side.groups.items():
            result = _grouped(result, name, group_N2, *judged)
    elif side.groups or side.quality_N2 is not None:
        said = "no rates by group or quality: they need both kinds of pairs, ten impostors or more"
        result = _with(result, {}, notes=warn(said))
    return result


def _with(
    result: VerificationResult,
    entry: Mapping[str, Any],
    tables: Sequence[Table] = (),
    curves: Sequence[Series] = (),
    notes: Sequence[str] = (),
) -> VerificationResult:
    """The result with more details."""
    return replace(
        result,
        details={**result.details, **entry},
        tables=[*result.tables, *tables],
        curves=[*result.curves, *curves],
        notes=[*result.notes, *notes],
    )


def _points_table(points: Mapping[str, Point]) -> Table:
    rows = [
        [
            f"{key} (measured {one.fmr:.2g})",
            interval_text(one.fnmr, one.fnmr_interval),
            f"{1 - one.fnmr:.5f}",
            interval_text(one.threshold, one.threshold_interval),
            f"{1 - one.threshold / 2:.5f}",
        ]
        for key, one in points.items()
    ]
    return Table(
        "Operating points",
        "FMR and FNMR are the error rates of comparisons (ISO/IEC 19795-1): false matches (FAR) and false "
        "non-matches (1 − TAR); failures to acquire a face are in neither. Intervals are of 95 %.",
        ["FMR (FAR)", "FNMR", "TAR", "Threshold (squared distance)", "Cosine"],
        rows,
    )


def _calibrated(result: VerificationResult, method: str) -> VerificationResult:
    cosine_N, same_N = 1 - result.distance_N.astype(np.float64) / 2, result.issame_N
    if same_N.all() or not same_N.any():
        return _with(result, {}, notes=warn("not calibrated: all pairs are of one kind"))
    probability_N = cross_fitted(cosine_N, same_N, result.validated["accuracy"].fold_N, method)
    if probability_N is None:
        said = "not calibrated: without one of the folds, pairs of one kind only are left"
        return _with(result, {}, notes=warn(said))
    found = reliability(probability_N, same_N)
    errors = {"ece": found.ece, "brier": found.brier, "log_loss": found.log_loss}
    bins = {"predicted": found.predicted_B.tolist(), "observed": found.observed_B.tolist()}
    entry = {"method": method, **FITS[method](cosine_N, same_N)[1], **errors, "reliability": bins}
    table = Table(
        f"Calibration, {method}",
        "Probability of one identity at even odds, each pair judged by a fit to the other folds; the "
        "function of all pairs is in results.json.",
        ["Calibration error (ECE)", "Brier score", "Log loss, bits"],
        [[f"{error:.5f}" for error in errors.values()]],
    )
    curve = Series("reliability", {"x": found.predicted_B, "y": found.observed_B})
    return _with(result, {"calibration": entry}, [table], [curve])


def _rejected(
    result: VerificationResult, quality_N2: Floats | None, setting: str | None, fmr: str, threshold: float
) -> VerificationResult:
    if setting is None:
        return result
    quality = result.norm_2N.reshape(-1, 2) if quality_N2 is None else quality_N2
    curve = error_versus_reject(result.distance_N, result.issame_N, quality, threshold)
    if curve is None or not curve.fnmr_C[0]:
        missing = f"no error to reject by quality: the FNMR at FMR {fmr} is 0"
        return result if quality_N2 is None else _with(result, {}, notes=warn(missing))
    rejected, fnmr = curve.rejected_C.tolist(), curve.fnmr_C.tolist()
    entry = {"quality": setting, "fmr": fmr, "rejected": rejected, "fnmr": fnmr}
    name = "embedding norm" if setting == "norm" else Path(setting).name
    note = f"{name}, FMR {fmr}: area {curve.auc:.5f}, of a perfect measure {curve.best:.5f}"
    shown = [0, 2, 4, 10]  # of the steps of 5 %
    table = Table(
        f"Error versus reject by {name}",
        f"FNMR at FMR {fmr} after the pairs of lowest quality were rejected; area: its mean.",
        [*(f"Rejected {curve.rejected_C[at]:.0%}" for at in shown), "Area", "Of a perfect measure"],
        [[f"{one:.5f}" for one in (*curve.fnmr_C[shown], curve.auc, curve.best)]],
    )
    return _with(
        result,
        {"error_versus_reject": entry | {"auc": curve.auc, "auc_best": curve.best}},
        [] if quality_N2 is None else [table],
        [Series("erc", {"x": curve.rejected_C, "y": curve.fnmr_C, "note": note})],
    )


def _grouped(
    result: VerificationResult, name: str, group_N2: np.ndarray, fmr: str, threshold: float
) -> VerificationResult:
    rates = group_rates(result.distance_N, result.issame_N, group_N2, threshold)
    gaps = {key: largest_gap(rates, key) for key in ("fnmr", "fmr")}
    entry = {
        "fmr_target": fmr,
        "threshold": threshold,
        "groups": {one.group: dict(list(one._asdict().items())[1:]) for one in rates},
        "largest_gap": {
            key: gap and dict(zip(("highest", "lowest", "gap"), gap, strict=True))
            for key, gap in gaps.items()
        },
    }
    said = [
        f"largest gap of the {key.upper()} {gap[2]:.5f}, {gap[0]} against {gap[1]}"
        if gap[2]
        else f"the same {key.upper()} in all groups"
        for key, gap in gaps.items()
        if gap is not None
    ]
    finding = "; ".join(said) or "no gap: pairs of fewer than two groups"
    rows = [
        [
            one.group,
            f"{one.genuine:,}",
            interval_text(one.fnmr, one.fnmr_interval),
            f"{one.impostor:,}",
            interval_text(one.fmr, one.fmr_interval),
        ]
        for one in rates
    ]
    table = Table(
        f"Groups by {name}",
        f"Pairs of one group, at the threshold of all pairs at FMR {fmr}; exact 95 % intervals, pairs taken "
        "as independent.",
        [name, "Genuine", "FNMR", "Impostor", "FMR"],
        rows,
        f"{finding[:1].upper()}{finding[1:]}.",
    )
    return _with(result, {"groups": {**result.details.get("groups", {}), name: entry}}, [table])


def choose_threshold(name: str, result: VerificationResult, far: float | None = None) -> Threshold:
    """The lowest threshold at which no more than `far` of the impostor pairs of a set are called same.

    The probability is a logistic function of the cosine, fitted to all pairs as Platt proposed (Probabilistic
    outputs for support vector machines, 1999), so that it stays finite where the kinds do not overlap;
    genuine and impostor pairs weigh the same in sum.

    Args:
        name: of the set.
        result: of the model on it.
        far: above 0 and below 1; None: 1e-3, or the next power of ten that the set's impostor pairs support.

    Raises:
        ConfigError: the set has one kind of pairs only, or too few impostor pairs for `far`.
    """
    genuine, impostor = result.genuine_pairs, result.pairs - result.genuine_pairs
    require(min(genuine, impostor) > 0, "eval.targets", name, "holds one kind of pairs: no threshold")
    if far is None:
        far = next((one for one in (1e-3, 1e-2, 1e-1) if one * impostor >= 1), 0.5)
    require(0 < far < 1, "far", far, "must be above 0 and below 1")
    hint = f"the {impostor:,} impostor pairs of {name} support {1 / impostor:.2g} and more"
    require(far * impostor >= 1 - 1e-9, "far", far, hint)
    separation = Separation.of(result.distance_N, result.issame_N)
    distance = min(separation.threshold_at_far(far), 4.0)
    return Threshold(
        cosine=float(1 - distance / 2),
        far=float(far),
        tar=float((separation.genuine_G < distance).mean()),
        set=name,
        genuine=genuine,
        impostor=impostor,
        flip=result.flip,
        **fit_logistic(1 - result.distance_N / 2, result.issame_N)[1],
    )
