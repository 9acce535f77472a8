"""Templates: many images of a person pooled into one vector, and pairs of templates compared by cosine.

Pooling is a weighted sum, so it streams: an image's embedding is added to its template and forgotten. Pairs
are compared in blocks, by matrix products where the list is dense (the 15.7 million pairs of IJB-C are a
quarter of all 3,531 × 19,593), else pair by pair.

Shape suffixes: R rows of a face list (an image in a template), P images, T templates, N pairs, D
embedding size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import DamagedDataError
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
from facerec.evaluation.statistics.bootstrap import rate_intervals
from facerec.evaluation.statistics.metrics import FAR_TARGETS, Bools, Curve, Floats, Histogram, Separation
from facerec.vectors import unit_rows

Ints = npt.NDArray[np.integer]

_BLOCK = 1 << 22  # scores computed at once (16 MB)
_DENSE = 100  # a matrix product of so many times the wanted scores is still quicker than gathering rows


@dataclass(frozen=True)
class FaceList:
    """Which image belongs to which template and medium, a row each.

    Attributes:
        image_R: number of the image, 0 … P − 1.
        template_R: number of the template, 0 … T − 1; each has at least one row.
        medium_R: any id of the medium (photograph or video) within the template.
    """

    image_R: Ints
    template_R: Ints
    medium_R: Ints

    @property
    def templates(self) -> int:
        """T, the number of templates."""
        return int(self.template_R.max(initial=-1)) + 1

    def share_R(self) -> Floats:
        """What each row counts in the sum of its template: 1 / (rows of its medium in its template)."""
        # One number for each (template, medium), from sorting both.
        order = np.lexsort((self.medium_R, self.template_R))
        template, medium = self.template_R[order], self.medium_R[order]
        first = np.ones(len(order), bool)
        first[1:] = (template[1:] != template[:-1]) | (medium[1:] != medium[:-1])
        group = np.cumsum(first) - 1
        share = np.empty(len(order))
        share[order] = 1 / np.bincount(group)[group]
        return share


class TemplatePool:
    """Normalised sum over media of the mean within a medium, of embeddings that come in any order and
    portions.

    Args:
        faces: which image belongs where.
        weight_P: weight of each image besides (the detector's score), 0 or more; None: all equal.
    """

    def __init__(self, faces: FaceList, weight_P: Floats | None = None) -> None:
        share_R = faces.share_R()
        if weight_P is not None:
            share_R = share_R * weight_P[faces.image_R]
        order = np.argsort(faces.image_R, kind="stable")
        self._image_R, self._template_R = faces.image_R[order], faces.template_R[order]
        self._share_R = share_R[order]
        self._templates = faces.templates
        self._sum_TD: Floats | None = None

    def add(self, first: int, embedding_BD: Floats) -> None:
        """Add the embeddings of images `first` … `first` + B − 1."""
        if self._sum_TD is None:
            self._sum_TD = np.zeros((self._templates, embedding_BD.shape[1]), np.float32)
        start, stop = np.searchsorted(self._image_R, [first, first + len(embedding_BD)])
        rows = slice(int(start), int(stop))
        weighted = embedding_BD[self._image_R[rows] - first] * self._share_R[rows, None].astype(np.float32)
        torch.from_numpy(self._sum_TD).index_add_(
            0, torch.from_numpy(self._template_R[rows].astype(np.int64)), torch.from_numpy(weighted)
        )

    def unit_TD(self) -> Floats:
        """The templates as unit vectors, float32 (T, D); zero ones stay zero.

        Raises:
            NonFiniteError: naming the first template that is not finite.
        """
        if self._sum_TD is None:
            raise DamagedDataError("no embeddings were added to the templates")
        return unit_rows(self._sum_TD, "template")


def pair_cosines(unit_TD: Floats, first_N: Ints, second_N: Ints) -> npt.NDArray[np.float32]:
    """Cosine of each listed pair of templates.

    Args:
        unit_TD: float32 unit vectors.
        first_N, second_N: rows of `unit_TD`.

    Returns:
        float32 (N,). Besides it about 100 MB are used, however many pairs there are.
    """
    template_TD = torch.from_numpy(np.ascontiguousarray(unit_TD, np.float32))
    cosine_N = np.empty(len(first_N), np.float32)
    left, row_N = _renumbered(first_N, len(unit_TD))
    right, column_N = _renumbered(second_N, len(unit_TD))
    if len(left) * len(right) <= _DENSE * len(first_N):
        right_RD = template_TD[torch.from_numpy(right)]
        for rows, pairs in _by_row(row_N, len(left), max(1, _BLOCK // len(right))):
            cosine = (template_TD[torch.from_numpy(left[rows])] @ right_RD.T).numpy()
            cosine_N[pairs] = cosine[row_N[pairs] - rows.start, column_N[pairs]]
        return cosine_N
    step = max(1, _BLOCK // unit_TD.shape[1])
    for start in range(0, len(first_N), step):
        block = slice(start, start + step)
        one, other = (
            template_TD[torch.from_numpy(index[block].astype(np.int64))] for index in (first_N, second_N)
        )
        cosine_N[block] = torch.linalg.vecdot(one, other).numpy()
    return cosine_N


def _renumbered(index_N: Ints, count: int) -> tuple[Ints, npt.NDArray[np.int32]]:
    """The numbers below `count` that occur, and the place of each entry among them."""
    used = np.zeros(count, bool)
    used[index_N] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - np.int32(1))[index_N]


def _by_row(row_N: Ints, rows: int, step: int) -> Iterator[tuple[slice, Ints | slice]]:
    """Blocks of `step` rows, and which pairs are in each."""
    if (row_N[1:] >= row_N[:-1]).all():  # as published lists are
        bounds = np.searchsorted(row_N, np.arange(0, rows + step, step))
        for number, start in enumerate(range(0, rows, step)):
            yield slice(start, start + step), slice(int(bounds[number]), int(bounds[number + 1]))
        return
    order = np.argsort(row_N, kind="stable")
    for block, pairs in _by_row(row_N[order], rows, step):
        yield block, order[pairs]


@dataclass(frozen=True)
class TemplateResult(Result):
    """Verification of listed template pairs; `to_dict` gives the entry of results.json.

    TAR is that at the largest threshold whose FAR ≤ the target; None where there are too few impostor pairs.
    Its 95 % intervals resample the people of the genuine pairs, the threshold held fixed.
    """

    tar_at_far: dict[str, float | None]
    tar_at_far_interval: dict[str, Interval]
    auc: float | None
    eer: float | None
    pairs: int
    genuine_pairs: int
    templates: int
    images: int
    flip: bool
    detector_score: bool
    protocol: str
    notes: list[str]
    curve: Curve | None = field(default=None, repr=False)
    """The ROC, thinned for drawing; its distances are negative cosines."""
    histogram: Histogram | None = field(default=None, repr=False)
    """Of the negative cosines."""
    right_X: Bools | None = field(default=None, repr=False)
    """Which genuine pairs are accepted at the FAR of `score`."""

    kind = "templates"

    @property
    def score_key(self) -> str:
        """TAR at FAR 1e-4, or at the lowest FAR above it that is supported."""
        return f"tar_at_far_{scored_far(self.tar_at_far)}"

    @property
    def decided(self) -> str:
        """What `right_X` is about."""
        return f"genuine pairs accepted at FAR {scored_far(self.tar_at_far)}"

    def lines(self) -> list[str]:
        """A line per FAR target that the pairs support, five digits."""
        return [f"TAR@FAR={far}: {tar:.5f}" for far, tar in self.tar_at_far.items() if tar is not None]

    def numbers(self) -> list[Number]:
        """TAR@FAR, AUC and EER."""
        return [
            *numbers_at("tar_at_far", "TAR @ FAR", self.tar_at_far, self.tar_at_far_interval),
            Number("auc", "AUC", self.auc),
            Number("eer", "EER", self.eer, lower_is_better=True),
        ]

    def facts(self) -> list[tuple[str, str]]:
        """Protocol, pairs, templates and how they were pooled."""
        facts = [
            ("Protocol", self.protocol),
            pair_counts(self.pairs, self.genuine_pairs),
            ("Templates", f"{self.templates:,} of {self.images:,} images"),
            flip_fact(self.flip),
            ("Detector score", "as weight of each image" if self.detector_score else "not used"),
        ]
        if any(self.tar_at_far_interval.values()):
            facts.append(("Intervals", "95 %, people of the genuine pairs resampled, thresholds held fixed"))
        return facts

    def curves(self) -> list[Series]:
        """ROC and histogram of cosines."""
        impostors = self.pairs - self.genuine_pairs
        return [
            *rate_curve(self.curve, "cosine", self.genuine_pairs, impostors, self.eer),
            *histogram(self.histogram, "cosine"),
        ]


def scored_far(tar_at_far: dict[str, float | None]) -> str | None:
    """The FAR to compare by: 1e-4, or the lowest above it that is supported; None where none is."""
    supported = [far for far, tar in tar_at_far.items() if tar is not None and float(far) >= 1e-4]
    return supported[-1] if supported else None


def judge_pairs(
    unit_TD: Floats,
    first_N: Ints,
    second_N: Ints,
    issame_N: Bools,
    *,
    images: int,
    flip: bool,
    detector_score: bool,
    protocol: str,
    identity_N: Ints | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> TemplateResult:
    """TAR@FAR over listed pairs of templates, compared by cosine.

    Args:
        unit_TD: unit templates.
        first_N, second_N: rows of `unit_TD`.
        issame_N: whether the pair is genuine.
        images, flip, detector_score, protocol: what is to be said with the numbers.
        identity_N: whose the first template of each pair is, for the intervals of TAR; None: there are none.
        bootstrap: number of resamples for them; 0 for none.
        seed: of the bootstrap.
    """
    cosine_N = pair_cosines(unit_TD, first_N, second_N)
    np.negative(cosine_N, out=cosine_N)
    same_N = np.asarray(issame_N, bool)
    separation = Separation.of(cosine_N, same_N)
    tars = separation.tars()
    genuine_G = cosine_N[same_N]
    supported = [far for far, tar in tars.items() if tar is not None]
    accepted = {far: genuine_G < separation.threshold_at_far(float(far)) for far in supported}
    spread: dict[str, Interval] = dict.fromkeys(tars)
    if identity_N is not None and supported:
        hits = np.stack(list(accepted.values()))
        intervals = rate_intervals(hits, identity_N[same_N], resamples=bootstrap, seed=seed)
        spread |= dict(zip(supported, intervals, strict=True))
    far = scored_far(tars)
    notes = separation.alike()
    unsupported = [target for target in FAR_TARGETS if tars[target] is None]
    if unsupported:
        notes.append(
            f"TAR at FAR {', '.join(unsupported)} needs more than {len(separation.impostor_I)} impostor pairs"
        )
    zero = int((~unit_TD.any(axis=1)).sum())
    if zero:
        notes.append(f"{zero} templates are all zeros")
    return TemplateResult(
        tar_at_far=tars,
        tar_at_far_interval=spread,
        auc=separation.auc(),
        eer=separation.eer(),
        pairs=len(issame_N),
        genuine_pairs=len(separation.genuine_G),
        templates=len(unit_TD),
        images=images,
        flip=flip,
        detector_score=detector_score,
        protocol=protocol,
        notes=notes,
        curve=separation.curve() if separation.both_kinds else None,
        histogram=separation.histogram(),
        right_X=None if far is None else accepted[far],
    )
