"""Judge verification pairs by a number that means something: not always the accuracy.

Shape suffixes: N pairs, F folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from facerec.errors import ConfigError, counted, require
from facerec.evaluation.results import Caution, logger
from facerec.evaluation.statistics.folds import GRID_J, Folds
from facerec.evaluation.statistics.separation import Bools, Floats, Ints

if TYPE_CHECKING:
    from facerec.evaluation.results import Number, Result
    from facerec.evaluation.settings import EvalSettings

RESOLVED: Final = 20  # thresholds of the grid among the middle 90 % of the distances: then it will do


def judge(
    distance_N: Floats, same_N: Bools, validated: Folds, exact: Folds
) -> tuple[str, Folds, list[Caution]]:
    """Choose the number to judge by; `validated` is of the grid, or equals `exact`.

    Returns:
        ``accuracy``; ``accuracy_exact`` where the grid of thresholds cannot resolve the distances; ``auc``
        where folds hold one kind of pairs only. The folds whose thresholds decide about each pair. Why not by
        the accuracy.
    """
    sides = one_sided(same_N, validated.fold_N)
    coarse = [] if validated is exact else unresolved(distance_N, validated, exact)
    key = "auc" if sides else "accuracy_exact" if coarse else "accuracy"
    return key, exact if coarse else validated, [*sides, *coarse]


def one_sided(same_N: Bools, fold_N: Ints) -> list[Caution]:
    """A note where folds hold one kind of pairs only, though the set has both; known before embedding."""
    genuine_F = np.bincount(fold_N, same_N)
    mixed_F = (genuine_F > 0) & (genuine_F < np.bincount(fold_N))
    if mixed_F.all() or same_N.all() or not same_N.any():
        return []
    count = f"{int((~mixed_F).sum())} of {len(mixed_F)} folds"
    rate = float(same_N.mean())
    always = f"answering always {'same' if rate > 0.5 else 'different'} would score {max(rate, 1 - rate):.3f}"
    return [
        Caution(
            f"{count} hold one kind of pairs only, so their thresholds come from an uneven rest, and "
            f"{always}: go by AUC and EER rather than by the accuracy"
        )
    ]


def unresolved(distance_N: Floats, grid: Folds, exact: Folds) -> list[Caution]:
    """A note where the grid has few thresholds among the distances, as of a network hardly trained."""
    low, high = np.quantile(distance_N.astype(np.float64), [0.05, 0.95])
    if not high > low:  # all alike, which is said elsewhere
        return []
    between = int(((low < GRID_J) & (high >= GRID_J)).sum())
    if between >= RESOLVED:
        return []
    count = counted(between, "threshold") if between else "no thresholds"
    return [
        Caution(
            f"90 % of the distances lie between {low:.3g} and {high:.3g}, where the published grid has "
            f"{count}: go by the exact threshold's accuracy {exact.accuracy:.5f}, not by {grid.accuracy:.5f}"
        )
    ]


def trusted(key: str, judged_by: str) -> bool:
    """True for a number that models may be compared by, where their set is judged by another."""
    doubtful = {"auc": ("accuracy", "accuracy_exact"), "accuracy_exact": ("accuracy",)}
    return key not in doubtful.get(judged_by, ())


def by_one_number(results: Sequence[Result]) -> list[Result]:
    """Results of several models on one set, all judged by the number that suits each of them."""
    keys = {result.score_key for result in results}
    return [*results] if len(keys) == 1 else [result.judged_by(suits_all(keys)) for result in results]


def suits_all(keys: Iterable[str]) -> str:
    """Return the number that results can be compared by which are judged by any of `keys`."""
    return next((key for key in ("auc", "accuracy_exact") if key in keys), "accuracy")


# The number that chooses best.pt ---------------------------------------------------------------------------


def check_select(settings: EvalSettings) -> None:
    """Raise `ConfigError` where `eval.select` names no number of these metrics."""
    select, names = settings.select, ["accuracy", *settings.metrics]
    known = select is None or any(select == name or select.startswith(f"{name}_") for name in names)
    choices = ", ".join(dict.fromkeys(["accuracy", "accuracy_exact", *names]))
    require(known, "eval.select", select, f"must be null or one of {choices} (of eval.metrics)")


def number_of(result: Result, select: str | None) -> Number | None:
    """The number `select` of a result, of a number per operating point the last supported one; None: its own
    headline.
    """
    if select is None:
        return result.headline
    numbers = {number.key: number for number in result.numbers() if number.value is not None}
    if select == "accuracy_exact" and select not in numbers:  # of eval.thresholds=exact
        select = "accuracy"
    points = [number for key, number in numbers.items() if key.startswith(f"{select}_1e-")]
    return numbers.get(select) or (points[-1] if points else None)


def check_supported(name: str, result: Result, select: str | None) -> None:
    """Raise `ConfigError` where the pairs of the set `name` do not support the number `select`."""
    if number_of(result, select) is None:
        keys = ", ".join(number.key for number in result.numbers() if number.value is not None)
        raise ConfigError("eval.select", select, f"is no number of {name}, whose pairs support {keys}")


def score(results: Mapping[str, Result], select: str | None) -> float:
    """The mean over the sets of the number that chooses best.pt, negative where less of it is better."""
    return float(np.mean([_signed(number_of(result, select)) for result in results.values()]))


def better(results: Mapping[str, Result], select: str | None, best: float) -> float | None:
    """`score`, if it is above `best`; logged with its name."""
    found = score(results, select)
    if not found > best:
        return None
    numbers = [number_of(result, select) for result in results.values()]
    names = ", ".join(dict.fromkeys(number.phrase for number in numbers if number is not None))
    mean = f" (mean of {len(numbers)} sets)" if len(numbers) > 1 else ""
    logger.info("best.pt: %s %.5f%s is the best so far", names, abs(found), mean)
    return found


def _signed(number: Number | None) -> float:
    if number is None or number.value is None:
        return float("nan")
    return -number.value if number.lower_is_better else number.value
