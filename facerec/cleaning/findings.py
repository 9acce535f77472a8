"""Find what does not belong in a set: wrong images, identities that are several, or one, copies, leaks.

Shape suffixes: N images of an identity, R embedded images (rows), C identities, D embedding size, P pairs
drawn, B a block, H halves of identities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facerec.cleaning.copies import Looks, near_copies, same_looks
from facerec.cleaning.decisions import KEEP, KINDS, Decision
from facerec.cleaning.judging import Limit, Thresholds, judge
from facerec.errors import counted
from facerec.evaluation.embedding_files import EmbeddedImages
from facerec.evaluation.identities import (
    BY_CHANCE,
    by_identity,
    chance_cosine,
    halves_cosine,
    pairs_alike,
    robust_centre,
    tail_value,
)
from facerec.evaluation.statistics.search import BLOCK, TopK, unit
from facerec.images.images import Images, LabelledImages
from facerec.vectors import row_norms

Floats = npt.NDArray[np.float32]

_MISSED: Final = 0.05  # part of what is known to be of one person that a threshold may pass over
_CLUSTER: Final = 3  # images that make a second person of an identity
_TOO_FEW: Final = "not searched for, too few identities to choose a threshold from"


@dataclass
class Test:
    """A test set: its images, their embeddings and looks."""

    name: str
    images: Images
    embedded: EmbeddedImages
    looks: Looks


@dataclass
class Found:
    """What was found.

    Attributes:
        own_R, impostor_P: cosines with the own centre of the judged images, and with those of others.
        reference_C: the image of each identity that is nearest to its centre; −1 where there is none.
        decisions: one per finding, `action` being ``keep``.
        limits: the thresholds, by kind.
        notes: lines about what could not be judged.
        tests: of decisions about leaks, by their place in the list: the test's images, and the number of one.
    """

    own_R: Floats
    impostor_P: Floats
    reference_C: npt.NDArray[np.int64]
    decisions: list[Decision] = field(default_factory=list)
    limits: dict[str, Limit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tests: dict[int, tuple[Images, int]] = field(default_factory=dict)


class Search:
    """The search for what does not belong in a set.

    Args:
        looks: thumbnails of the embedded images.
        given: thresholds, and what others are chosen by.
        centre_CD: centres of the identities (a head's); None: robust ones of the images.
        mixed: look for further people among the images far from their identity; else each is an outlier.
        seed: of the drawing of strangers.
    """

    def __init__(
        self,
        faces: LabelledImages,
        embedded: EmbeddedImages,
        looks: Looks,
        given: Thresholds,
        centre_CD: Floats | None,
        mixed: bool,
        seed: int,
    ) -> None:
        self.faces, self.embedded, self.looks, self.given = faces, embedded, looks, given
        self.mixed, self.seed = mixed, seed
        self.label_R = np.asarray(faces.label_N)[embedded.position_R]
        self.count_C = np.bincount(self.label_R, minlength=faces.num_classes)
        self.first_C = faces.first_images()
        judged = judge(faces, embedded, given, centre_CD, seed)
        self.centres, self.judged_R = judged.centres, judged.judged_R
        self.found = Found(judged.own_R, judged.impostor_P, np.full(faces.num_classes, -1, np.int64))
        if judged.limit is not None:
            self.found.limits["outlier"] = judged.limit

    def run(self, tests: Sequence[Test]) -> Found:
        """Find what does not belong; `tests` must share no identity and no image with the set."""
        found = self.found
        for i, reason in self.embedded.damaged.items():
            self._image("damaged", i, reason)
        halves: list[float] = []
        far: list[int] = []
        for label, rows in by_identity(self.faces, self.embedded, "looking for what does not belong"):
            cosine_N = self.centres.cosine_R[rows]
            found.reference_C[label] = self.embedded.position_R[rows[cosine_N.argmax()]]
            core = rows[self.centres.core_R[rows]]
            if len(core) >= 4:
                halves.append(halves_cosine(np.asarray(self.embedded.row_RD[core])))
            far += self._outliers(rows, cosine_N)
            self._near_copies(rows)
        self._name_others(far)
        self._same_everywhere()
        self._merges(np.array(halves, np.float32))
        for test in tests:
            self._leaks(test)
        self._note_small()
        return found

    def _outliers(self, rows: npt.NDArray[np.int64], cosine_N: Floats) -> list[int]:
        """Judge the images of an identity; return the rows of those that are nobody's in it."""
        limit = self.found.limits.get("outlier")
        if limit is None or not self.judged_R[rows[0]]:
            return []
        wide, number = rows[cosine_N < limit.widest], 2
        kept = len(rows) - len(wide)
        name = self._identity(int(self.label_R[rows[0]]))
        while self.mixed and (len(wide) >= _CLUSTER or 2 <= len(wide) == kept):
            second = robust_centre(np.asarray(self.embedded.row_RD[wide]), limit.widest)
            alike_N = second.core_N & (second.cosine_N >= limit.widest)
            if alike_N.sum() < (2 if kept == 2 else _CLUSTER):
                break
            for row, cosine in zip(wide[alike_N].tolist(), second.cosine_N[alike_N].tolist(), strict=True):
                own, others = float(self.centres.cosine_R[row]), int(alike_N.sum()) - 1
                self._image(
                    "mixed",
                    int(self.embedded.position_R[row]),
                    f"cosine {own:.3f} with its identity, {cosine:.3f} with {counted(others, 'other')} of it",
                    cosine=own,
                    least=limit.widest,
                    other=f"{name}~{number}",
                )
            wide, number = wide[~alike_N], number + 1
        return wide[self.centres.cosine_R[wide] < limit.least].tolist()

    def _name_others(self, far: list[int]) -> None:
        """Say of outliers which other identity is the nearest."""
        least = self.found.limits["outlier"].least if far else 0.0
        for first in range(0, len(far), BLOCK):
            row_B = np.sort(far[first : first + BLOCK])
            top = TopK.of(unit(self.embedded.row_RD[row_B]), self.centres.sum_CD, 2)
            nearest = top.index_PK.tolist(), top.score_PK.tolist()
            for row, labels, cosines in zip(row_B.tolist(), *nearest, strict=True):
                at = int(labels[0] == self.label_R[row])
                own, other = float(self.centres.cosine_R[row]), labels[at]
                measured: dict[str, Any] = {"cosine": own, "least": least}
                said = f"cosine {own:.3f} with the centre of its identity"
                if other >= 0 and self.count_C[other]:
                    measured |= {"other": self._identity(other), "other_number": other}
                    said = f"cosine {own:.3f} with its identity, {cosines[at]:.3f} with the nearest other"
                self._image("outlier", int(self.embedded.position_R[row]), said, **measured)

    def _near_copies(self, rows: npt.NDArray[np.int64]) -> None:
        least = self.given.duplicate
        for first, second, cosine, said in near_copies(rows, self.embedded.row_RD, self.looks, least):
            self._copy(first, second, said, cosine=cosine, least=least)

    def _same_everywhere(self) -> None:
        """Images with equal pixels in several identities: all but the one nearest to its identity."""
        for rows in same_looks(self.looks):
            labels = self.label_R[rows]
            if len(set(labels.tolist())) == 1:
                continue  # within an identity they are near copies
            rank = np.lexsort((-self.centres.cosine_R[rows], ~self.judged_R[rows]))
            best, *others = rows[rank].tolist()
            said = f"the same image is in {self._identity(int(self.label_R[best]))}"
            for row in others:
                if self.label_R[row] != self.label_R[best]:
                    self._copy(best, row, said, cosine=1.0)

    def _merges(self, half_H: Floats) -> None:
        """Pairs of identities that are one person, the most alike first; chains of them are cut."""
        centre_CD, count = self.centres.sum_CD, int((self.count_C > 0).sum())
        chance = chance_cosine([centre_CD], count * (count - 1) / 2, BY_CHANCE * count, self.seed)
        limit = self._together("merge", half_H, chance)
        if limit is None:
            return
        pairs = pairs_alike(centre_CD, least=limit.least)
        group_C = np.arange(len(centre_CD))
        sum_C: dict[int, Floats] = {}
        for one, two, cosine in zip(*(part.tolist() for part in pairs), strict=True):
            small, large = sorted((one, two), key=lambda c: (self.count_C[c], -c))
            groups = int(group_C[small]), int(group_C[large])
            said = f"cosine {cosine:.3f} of their centres"
            proposal = "merge"
            if groups[0] != groups[1]:
                sums = [sum_C.get(g, centre_CD[g]) for g in groups]
                whole = float(sums[0] @ sums[1] / np.prod(row_norms(np.stack(sums))))
                if whole < limit.least:
                    proposal, said = KEEP, f"{said}, but {whole:.3f} with those already merged into it"
                else:
                    sum_C[groups[1]] = sums[0] + sums[1]
                    group_C[group_C == groups[0]] = groups[1]
            measured = {"cosine": cosine, "least": limit.least, "other": self._identity(large)}
            self._whole("merge", small, said, proposal=proposal, other_number=large, **measured)

    def _leaks(self, test: Test) -> None:
        """Identities and images that are in a test set."""
        at = {int(one): row for row, one in enumerate(test.looks.digest_R)}
        for row in np.flatnonzero(np.isin(self.looks.digest_R, test.looks.digest_R)).tolist():
            there = int(test.embedded.position_R[at[int(self.looks.digest_R[row])]])
            name = f"{test.name}: {test.images.name(there)}"
            self.found.tests[len(self.found.decisions)] = test.images, there
            self._image("leak", int(self.embedded.position_R[row]), "the same image", cosine=1.0, other=name)
        comparisons = len(self.centres.sum_CD) * len(test.embedded.row_RD)
        falling_P = np.sort(self.found.impostor_P)[::-1]
        chance = tail_value(falling_P, BY_CHANCE * len(self.centres.sum_CD) / max(comparisons, 1))
        wide = self.found.limits.get("outlier")
        own_R = self.found.own_R if wide is None else self.found.own_R[self.found.own_R >= wide.least]
        limit = self._together("leak", own_R, chance)
        if limit is None:
            return
        for first in range(0, len(self.centres.sum_CD), BLOCK):
            probe_BD = unit(self.centres.sum_CD[first : first + BLOCK])
            top = TopK.of(probe_BD, test.embedded.row_RD, 1)
            score_B = top.score_PK[:, 0].numpy()
            for label in np.flatnonzero((score_B >= limit.least) & probe_BD.any(1).numpy()).tolist():
                there = int(test.embedded.position_R[int(top.index_PK[label, 0])])
                cosine, other = float(score_B[label]), f"{test.name}: {test.images.name(there)}"
                self.found.tests[len(self.found.decisions)] = test.images, there
                said = f"cosine {cosine:.3f} of its centre with an image of the test"
                self._whole("leak", label + first, said, cosine=cosine, least=limit.least, other=other)

    def _together(self, kind: str, same_X: Floats, chance: float | None) -> Limit | None:
        """The threshold from which two are one person: what few of the same miss, and few strangers reach."""
        given = getattr(self.given, kind)
        same = float(np.quantile(same_X, _MISSED)) if len(same_X) else None
        known = [one for one in (same, chance) if one is not None and one > 0]
        if given is not None:
            limit = Limit(given)
        elif not known:
            self.found.notes.append(f"{kind}: {_TOO_FEW}")
            return None
        elif max(known) == chance:
            said = f"which strangers reach by chance in {100 * BY_CHANCE:g} of 100 identities"
            limit = Limit(chance, said)
        else:
            said = f"which {100 * (1 - _MISSED):g} % of what is known to be one person reach"
            limit = Limit(max(known), said)
        self.found.limits[kind] = limit
        return limit

    def _note_small(self) -> None:
        few_C = (self.count_C > 0) & (self.count_C < self.given.min_images)
        if few_C.any():
            images, identities = int(self.count_C[few_C].sum()), int(few_C.sum())
            self.found.notes.append(
                f"too few to judge: {counted(images, 'image')} of {counted(identities, 'identity')} with "
                f"fewer than {self.given.min_images}"
            )
        if "outlier" not in self.found.limits:
            self.found.notes.append(f"outlier: {_TOO_FEW}")

    def _image(self, kind: str, i: int, reason: str, **measured: Any) -> None:
        """Add a decision about image i."""
        named = self.faces.label(i), self.faces.name(i)
        self.found.decisions.append(Decision(kind, KINDS[kind], KEEP, i, *named, reason=reason, **measured))

    def _copy(self, kept: int, copy: int, reason: str, **measured: Any) -> None:
        """Add a decision about a row that is a copy of another."""
        kept, copy = (int(self.embedded.position_R[row]) for row in (kept, copy))
        other = {"other": self.faces.name(kept), "other_number": kept}
        self._image("duplicate", copy, reason, **other, **measured)

    def _whole(self, kind: str, label: int, reason: str, proposal: str = "", **measured: Any) -> None:
        """Add a decision about an identity."""
        name = self._identity(label)
        self.found.decisions.append(
            Decision(kind, proposal or KINDS[kind], KEEP, label, name, "", reason=reason, **measured)
        )

    def _identity(self, label: int) -> str:
        return self.faces.label(int(self.first_C[label]))


def applied(decisions: Sequence[Decision], kinds: Mapping[str, bool]) -> Iterator[Decision]:
    """The decisions with their proposals as actions, where their kind is asked for."""
    for one in decisions:
        yield one._replace(action=one.proposal if kinds.get(one.kind) else KEEP)
