"""MegaFace challenge 1: rank-1 among 10 … 1,000,000 distractors, and TAR at FAR 1e-6.

Shape suffixes: P probes, N mate pairs, C cuts, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import UserError, counted, require
from facerec.evaluation.embedding import embed_portions
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.base import PROTOCOLS, Protocol
from facerec.evaluation.protocols.identification import Folders
from facerec.evaluation.results import Number, Result, Series, interval_facts, numbers_at, unsupported
from facerec.evaluation.statistics.bootstrap import Interval, rate_intervals
from facerec.evaluation.statistics.search import Highest, PrefixMaxima, Rows, cosine_blocks, unit
from facerec.evaluation.statistics.separation import Ints, accepted_at
from facerec.models.model import Model

CUTS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
MEGAFACE_FAR = "1e-6"


@PROTOCOLS.register("megaface")
@dataclass(frozen=True)
class Megaface(Protocol):
    """MegaFace challenge 1.

    Args:
        probes: the FaceScrub probe set, a folder of aligned faces per identity.
        distractors: the MegaFace distractors, at any depth. They are added in an order that `seed` draws,
            since their folders keep images of one owner next to each other.
        leave_out: file that lists noisy images of either folder, a relative path per line; null: none.
        cuts: numbers of distractors at which rank-1 is wanted, ascending.
    """

    protocol: Literal["megaface"] = "megaface"
    probes: str | None = None
    distractors: str | None = None
    leave_out: str | None = None
    cuts: list[int] = field(default_factory=lambda: list(CUTS))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.probes is not None, "eval.probes", None, "must be the folder of the FaceScrub probe set")
        given = self.distractors is not None
        require(given, "eval.distractors", None, "must be the folder of the distractors")
        ascending = self.cuts == sorted({cut for cut in self.cuts if cut > 0}) != []
        require(ascending, "eval.cuts", self.cuts, "must be numbers of 1 or more, ascending")

    def results(self, model: Model) -> Mapping[str, Result]:
        """Search each probe's mates among the distractors.

        Raises:
            MissingDataError: a folder is missing or has no images.
            UserError: no identity has two images.
        """
        folders = Folders(self.leave_out)
        probes, distractors = folders.labelled(self.probes or ""), folders.images(self.distractors or "")
        left_out = folders.notes()
        order = np.random.default_rng(self.seed).permutation(len(distractors))
        result = megaface(
            np.concatenate(list(embed_portions(model, probes, self, "probes"))),
            probes.labels,
            embed_portions(model, distractors, self, "distractors", order),
            len(distractors),
            cuts=self.cuts,
            bootstrap=self.resamples,
            seed=self.seed,
            protocol=f"MegaFace challenge 1, cosine, {self.views}, distractor order of seed {self.seed}",
        )
        notes = result.notes + left_out + overlap_notes(model, set(probes.labels), "FaceScrub")
        return {"megaface": replace(result, notes=notes)}


@dataclass(frozen=True, kw_only=True)
class MegafaceResult(Result):
    """MegaFace challenge 1.

    The 95 % intervals resample the identities of the probes, distractors and threshold held fixed.

    Attributes:
        rank1: fraction of the mate pairs in which the mate is nearer to the probe than each of the first 10,
            100 … distractors; None where there are not so many.
        tar_at_far: fraction of the mate pairs above the lowest threshold at which the fraction of (probe,
            distractor) pairs above it is within the target, over all distractors.
    """

    rank1: dict[str, float | None]
    rank1_interval: dict[str, Interval]
    tar_at_far: dict[str, float | None]
    tar_at_far_interval: dict[str, Interval]
    probes: int
    identities: int
    mate_pairs: int
    distractors: int

    kind = "megaface"

    def lines(self) -> list[str]:
        """Rank-1 at each supported number of distractors and TAR@FAR, five digits."""
        lines = [f"Rank-1@{int(cut):,}: {v:.5f}" for cut, v in self.rank1.items() if v is not None]
        return lines + [f"TAR@FAR={far}: {v:.5f}" for far, v in self.tar_at_far.items() if v is not None]

    def numbers(self) -> list[Number]:
        """Rank-1 among the first 10, 100 … distractors, and TAR@FAR."""
        ranks = [
            Number(f"rank1_{cut}", f"Rank 1 among {int(cut):,}", value, self.rank1_interval.get(cut))
            for cut, value in self.rank1.items()
        ]
        return ranks + numbers_at("tar_at_far", "TAR @ FAR", self.tar_at_far, self.tar_at_far_interval)

    def facts(self) -> list[tuple[str, str]]:
        """Protocol, probes and distractors."""
        probes = f"{self.probes:,} ({counted(self.identities, 'identity')}, {self.mate_pairs:,} mate pairs)"
        resampled = "identities of the probes resampled, distractors held fixed"
        return [
            ("Protocol", self.protocol),
            ("Probes", probes),
            ("Distractors", f"{self.distractors:,}"),
            *interval_facts(self.rank1_interval, resampled),
        ]


def megaface(
    probe_PD: Rows,
    identity_P: npt.ArrayLike,
    distractors: Rows | Iterable[Rows],
    count: int | None = None,
    *,
    cuts: Sequence[int] = CUTS,
    bootstrap: int = 0,
    seed: int = 0,
    protocol: str = "MegaFace challenge 1",
) -> MegafaceResult:
    """Each probe with one mate among many distractors, for each ordered pair of images of an identity.

    Every image of an identity is the one mate in the gallery in turn, every other image of it a probe. A
    tie with a distractor is a miss.

    Args:
        probe_PD: embeddings of the probe set (FaceScrub: 3,530 images of 80 identities), any norm.
        identity_P: who they are, numbers or names.
        distractors: (count, D) embeddings of other identities, in the order in which they are added; an array
            (memory-mapped ones are read block by block) or an iterable of arrays.
        count: how many distractors there are, where `distractors` is an iterable.
        cuts: numbers of distractors at which rank-1 is wanted, ascending.
        bootstrap: number of resamples for 95 % intervals; 0 for none.

    Raises:
        UserError: no identity has two images, or there are other than `count` distractors.
        NonFiniteError: naming an embedding that is not finite.
    """
    probe = unit(probe_PD, "probe")
    if isinstance(distractors, np.ndarray | torch.Tensor):
        count = len(distractors)
    if not count:
        raise UserError("MegaFace needs distractors, and how many there are")
    _, number_P = np.unique(np.asarray(identity_P), return_inverse=True)
    probe_N, cosine_N = _mate_pairs(probe, number_P)
    if not len(probe_N):
        raise UserError("no identity of the probe set has two images, so there are no mates")
    reached = [cut for cut in cuts if cut <= count]
    impostors = len(probe) * count
    far = float(MEGAFACE_FAR)
    allowed = accepted_at(far, impostors)
    maxima = PrefixMaxima(len(probe), reached)
    highest = Highest(allowed + 1)
    seen = 0
    for first, cosine_PB in cosine_blocks(probe, distractors):
        maxima.add(first, cosine_PB)
        highest.add(cosine_PB)
        seen = first + cosine_PB.shape[1]
    if seen != count:
        raise UserError(f"{seen} distractors came, {count} were announced")
    maximum_PC = maxima.maximum_PC.numpy()
    hits = {
        str(cut): cosine_N > maximum_P[probe_N] for cut, maximum_P in zip(reached, maximum_PC.T, strict=True)
    }
    rank1: dict[str, float | None] = {str(cut): None for cut in cuts}
    rank1 |= {cut: float(hit_N.mean()) for cut, hit_N in hits.items()}
    accepted_N = cosine_N > float(highest.values()[allowed])
    tar = float(accepted_N.mean()) if 1 / impostors <= far else None
    rates = hits if tar is None else {**hits, MEGAFACE_FAR: accepted_N}
    intervals = rate_intervals(rates, number_P[probe_N], resamples=bootstrap, seed=seed)
    notes = unsupported(rank1, "rank-1 at", count, "distractors")
    notes += unsupported({MEGAFACE_FAR: tar}, "TAR at FAR", impostors, "impostor pairs")
    alone = len(probe) - len(np.unique(probe_N))
    if alone:
        notes.append(f"{counted(alone, 'probe')} without a mate (one image of the identity)")
    return MegafaceResult(
        rank1=rank1,
        rank1_interval={cut: intervals.get(cut) for cut in rank1},
        tar_at_far={MEGAFACE_FAR: tar},
        tar_at_far_interval={MEGAFACE_FAR: intervals.get(MEGAFACE_FAR)},
        probes=len(probe),
        identities=int(number_P.max()) + 1,
        mate_pairs=len(probe_N),
        distractors=count,
        protocol=protocol,
        notes=notes,
        score_key=f"rank1_{reached[-1]}" if reached else "",
        decided="mates nearer than all distractors",
        right_X=hits[str(reached[-1])] if reached else None,
        curves=[Series("distractors", {"x": reached, "y": [rank1[str(cut)] for cut in reached]})],
    )


def _mate_pairs(probe_PD: torch.Tensor, number_P: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
    """All ordered pairs of two images of one identity: the probe of each, and their cosine."""
    probes, cosines = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for members in np.split(np.argsort(number_P, kind="stable"), np.cumsum(np.bincount(number_P))[:-1]):
        rows = probe_PD[torch.from_numpy(members)]
        pairs = ~np.eye(len(members), dtype=bool)
        cosines.append((rows @ rows.T).numpy()[pairs])
        probes.append(np.repeat(members, len(members) - 1))
    return np.concatenate(probes), np.concatenate(cosines)
