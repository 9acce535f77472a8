"""Identification, 1:N: ranks and open-set rates of probes in a gallery, and MegaFace's challenge 1.

Shape suffixes: P probes, G gallery entries, N mate pairs, C cuts, K entries kept a probe, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import UserError, require
from facerec.evaluation.results import Interval, Number, Result, Series, numbers_at, rate_curve
from facerec.evaluation.statistics.bootstrap import rate_intervals
from facerec.evaluation.statistics.metrics import Bools, Curve, Separation, accepted_at
from facerec.evaluation.statistics.search import Highest, PrefixMaxima, Rows, TopK, cosine_blocks, unit

Ints = npt.NDArray[np.integer]

FPIR_TARGETS = ("1e-1", "1e-2", "1e-3", "1e-4")
MEGAFACE_CUTS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
MEGAFACE_FAR = "1e-6"


@dataclass(frozen=True)
class IdentificationResult(Result):
    """Ranks (closed set) and detection-and-identification rates (open set); `to_dict` for results.json.

    Attributes:
        rank: share of the mated probes whose identity is first, or among the first five: ``{"1": …, "5":
            …}``.
        cmc: the same for rank 1, 2, 3 …
        tpir_at_fpir: share of the mated probes that are first and above the lowest threshold at which the
            share of non-mated probes above it is within the target; None where there are too few non-mated
            probes.
        probes, mated_probes, gallery, identities, distractors: numbers of them.
        rank_interval, tpir_at_fpir_interval: 95 % intervals, people of the mated probes resampled, gallery
            and thresholds held fixed.
        protocol, notes: what is to be said with the numbers.
        curve: TPIR over FPIR (as true over false accept rate), thinned for drawing; its distances are
            negative cosines, infinite where a mate was not first.
        right_X: whether each mated probe's mate was first.
    """

    rank: dict[str, float]
    rank_interval: dict[str, Interval]
    cmc: list[float]
    tpir_at_fpir: dict[str, float | None]
    tpir_at_fpir_interval: dict[str, Interval]
    probes: int
    mated_probes: int
    gallery: int
    identities: int
    distractors: int
    protocol: str
    notes: list[str]
    curve: Curve | None = field(default=None, repr=False)
    right_X: Bools | None = field(default=None, repr=False)

    kind = "identification"
    score_key = "rank_1"
    decided = "mated probes found at rank 1"

    def lines(self) -> list[str]:
        """Ranks, and TPIR at the targets that are supported, five digits."""
        lines = [f"Rank-{rank}: {value:.5f}" for rank, value in self.rank.items()]
        return lines + [f"TPIR@FPIR={at}: {v:.5f}" for at, v in self.tpir_at_fpir.items() if v is not None]

    def numbers(self) -> list[Number]:
        """Ranks and TPIR@FPIR."""
        return [
            *numbers_at("rank", "Rank", self.rank, self.rank_interval),
            *numbers_at("tpir_at_fpir", "TPIR @ FPIR", self.tpir_at_fpir, self.tpir_at_fpir_interval),
        ]

    def facts(self) -> list[tuple[str, str]]:
        """Protocol, probes, gallery and distractors."""
        facts = [
            ("Protocol", self.protocol),
            ("Probes", f"{self.probes:,} ({self.mated_probes:,} with a mate in the gallery)"),
            ("Gallery", f"{self.gallery:,} entries of {self.identities:,} people"),
            ("Distractors", f"{self.distractors:,}"),
        ]
        if any(self.rank_interval.values()):
            facts.append(("Intervals", "95 %, people of the mated probes resampled, thresholds held fixed"))
        return facts

    def curves(self) -> list[Series]:
        """CMC, and TPIR over FPIR where there are non-mated probes."""
        cmc = Series("cmc", {"x": list(range(1, len(self.cmc) + 1)), "y": self.cmc})
        non_mated = self.probes - self.mated_probes
        return [cmc, *rate_curve(self.curve, "cosine", self.mated_probes, non_mated, chart="tpir")]


def identify(
    probe_PD: Rows,
    probe_identity_P: npt.ArrayLike,
    gallery_GD: Rows,
    gallery_identity_G: npt.ArrayLike,
    *,
    distractors: Rows | Iterable[Rows] = (),
    ranks: int = 20,
    bootstrap: int = 0,
    seed: int = 0,
    protocol: str = "identification",
) -> IdentificationResult:
    """Search probes in a gallery by cosine.

    The rank of a probe is one more than the number of other identities with an entry that is at least as
    near as its nearest mate; each distractor is an identity of its own. Probes whose identity is not in the
    gallery are the non-mated ones of the open set.

    Args:
        probe_PD, gallery_GD: embeddings of any norm.
        probe_identity_P, gallery_identity_G: identities, numbers or names.
        distractors: more gallery entries, of people who are no probes; an array or an iterable of arrays.
        ranks: length of the CMC, 1 or more.
        bootstrap: number of resamples of the mated probes' people for 95 % intervals; 0 for none.
        seed: of the bootstrap.
        protocol: the protocol's name.

    Raises:
        UserError: no probe has a mate, or the numbers of rows and identities differ.
        NonFiniteError: naming an embedding that is not finite.
    """
    require(ranks >= 1, "ranks", ranks, "must be 1 or more")
    probe = unit(probe_PD, "probe")
    names, number = np.unique(
        np.concatenate([np.asarray(gallery_identity_G), np.asarray(probe_identity_P)]), return_inverse=True
    )
    gallery_G, probe_P = number[: len(gallery_GD)], number[len(gallery_GD) :]
    if len(number) != len(gallery_GD) + len(probe):
        raise UserError(
            f"{len(number)} identities for {len(gallery_GD)} gallery entries and {len(probe)} probes"
        )
    mated_P = np.isin(probe_P, gallery_G)
    if not mated_P.any():
        raise UserError("no probe's identity is in the gallery, so there is nothing to identify")
    # So many entries hold at least `ranks` identities besides the mate's, even where the last ones kept are
    # equal to entries that were not.
    keep = (ranks + 1) * int(np.bincount(gallery_G).max())
    top = TopK(len(probe), keep)
    entries = 0
    for block in cosine_blocks(probe, _all_of(gallery_GD, distractors)):
        top.add(block)
        entries = block.first + len(block)
    score_PK, index_PK = top.score_PK.numpy(), top.index_PK.numpy()
    rank_P = _ranks(score_PK, _identities(index_PK, gallery_G, len(names)), probe_P)
    cmc = [float((rank_P[mated_P] <= rank).mean()) for rank in range(1, ranks + 1)]
    first_P = rank_P[mated_P] == 1
    found_P = np.where(first_P, -score_PK[mated_P, 0], np.inf)
    separation = Separation(found_P, -score_PK[~mated_P, 0])
    tpir = separation.tars(FPIR_TARGETS)
    named = [rank for rank in (1, 5) if rank <= ranks]
    supported = [target for target, rate in tpir.items() if rate is not None]
    hits = [rank_P[mated_P] <= rank for rank in named]
    hits += [found_P < separation.threshold_at_far(float(target)) for target in supported]
    spread = rate_intervals(np.stack(hits), probe_P[mated_P], resamples=bootstrap, seed=seed)
    tpir_spread = dict(zip(supported, spread[len(named) :], strict=True))
    return IdentificationResult(
        rank={str(rank): cmc[rank - 1] for rank in named},
        rank_interval={str(rank): one for rank, one in zip(named, spread, strict=False)},
        cmc=cmc,
        tpir_at_fpir=tpir,
        tpir_at_fpir_interval={target: tpir_spread.get(target) for target in tpir},
        probes=len(probe),
        mated_probes=int(mated_P.sum()),
        gallery=len(gallery_G),
        identities=len(np.unique(gallery_G)),
        distractors=entries - len(gallery_G),
        protocol=protocol,
        notes=_unsupported(tpir, "TPIR at FPIR", int((~mated_P).sum()), "non-mated probes"),
        curve=separation.curve() if separation.both_kinds else None,
        right_X=first_P,
    )


def _all_of(gallery_GD: Rows, distractors: Rows | Iterable[Rows]) -> Iterable[Rows]:
    yield gallery_GD
    if isinstance(distractors, np.ndarray | torch.Tensor):
        yield distractors
    else:
        yield from distractors


def _identities(index_PK: Ints, gallery_G: Ints, names: int) -> Ints:
    """Identity of each entry; distractors get numbers of their own, places still free −1."""
    inside = (index_PK >= 0) & (index_PK < len(gallery_G))
    return np.where(
        inside, gallery_G[np.where(inside, index_PK, 0)], np.where(index_PK < 0, -1, index_PK + names)
    )


def _ranks(score_PK: npt.NDArray[np.floating], identity_PK: Ints, probe_P: Ints) -> npt.NDArray[np.floating]:
    """1 + the number of other identities as near as the nearest mate; infinity where no mate was kept."""
    mate_PK = identity_PK == probe_P[:, None]
    best_P = np.where(mate_PK, score_PK, -np.inf).max(axis=1)
    ahead_PK = (score_PK >= best_P[:, None]) & ~mate_PK & (identity_PK >= 0)
    other_PK = np.sort(np.where(ahead_PK, identity_PK, -1), axis=1)
    different = (other_PK[:, 1:] != other_PK[:, :-1]).sum(axis=1) + (other_PK[:, 0] >= 0)
    return np.where(mate_PK.any(axis=1), 1.0 + different, np.inf)


@dataclass(frozen=True)
class MegafaceResult(Result):
    """MegaFace challenge 1; `to_dict` gives the entry of results.json.

    Attributes:
        rank1: share of the mate pairs in which the mate is nearer to the probe than each of the first 10,
            100 … distractors; None where there are not so many.
        tar_at_far: share of the mate pairs above the lowest threshold at which the share of (probe,
            distractor) pairs above it is within the target, over all distractors.
        rank1_interval, tar_at_far_interval: 95 % intervals, people of the probes resampled, distractors and
            threshold held fixed.
        probes, identities, mate_pairs, distractors: numbers of them.
        protocol, notes: what is to be said with the numbers.
        right_X: whether each mate is nearer than all of the most distractors.
    """

    rank1: dict[str, float | None]
    rank1_interval: dict[str, Interval]
    tar_at_far: dict[str, float | None]
    tar_at_far_interval: dict[str, Interval]
    probes: int
    identities: int
    mate_pairs: int
    distractors: int
    protocol: str
    notes: list[str]
    right_X: Bools | None = field(default=None, repr=False)

    kind = "megaface"
    decided = "mates nearer than all distractors"

    @property
    def score_key(self) -> str:
        """Rank-1 among the most distractors."""
        return next((f"rank1_{cut}" for cut, rate in reversed(self.rank1.items()) if rate is not None), "")

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
        probes = f"{self.probes:,} ({self.identities:,} people, {self.mate_pairs:,} mate pairs)"
        facts = [
            ("Protocol", self.protocol),
            ("Probes", probes),
            ("Distractors", f"{self.distractors:,}"),
        ]
        if any(self.rank1_interval.values()):
            facts.append(("Intervals", "95 %, people of the probes resampled, distractors held fixed"))
        return facts

    def curves(self) -> list[Series]:
        """Rank-1 over the number of distractors."""
        reached = {int(cut): value for cut, value in self.rank1.items() if value is not None}
        return [Series("distractors", {"x": list(reached), "y": list(reached.values())})]


def megaface(
    probe_PD: Rows,
    identity_P: npt.ArrayLike,
    distractors: Rows | Iterable[Rows],
    count: int | None = None,
    *,
    cuts: Sequence[int] = MEGAFACE_CUTS,
    bootstrap: int = 0,
    seed: int = 0,
    protocol: str = "MegaFace challenge 1",
) -> MegafaceResult:
    """Each probe with one mate among many distractors, for each ordered pair of images of a person.

    Every image of an identity is the one mate in the gallery in turn, every other image of it a probe. A
    tie with a distractor is a miss.

    Args:
        probe_PD: embeddings of the probe set (FaceScrub: 3,530 images of 80 people), any norm.
        identity_P: who they are, numbers or names.
        distractors: (count, D) embeddings of other people, in the order in which they are added; an array
            (memory-mapped ones are read block by block) or an iterable of arrays.
        count: how many distractors there are, where `distractors` is an iterable.
        cuts: numbers of distractors at which rank-1 is wanted, ascending.
        bootstrap: number of resamples of the probes' people for 95 % intervals; 0 for none.
        seed: of the bootstrap.
        protocol: the protocol's name.

    Raises:
        UserError: no person has two images, or there are other than `count` distractors.
        NonFiniteError: naming an embedding that is not finite.
    """
    probe = unit(probe_PD, "probe")
    if isinstance(distractors, np.ndarray | torch.Tensor):
        count = len(distractors)
    if not count:
        raise UserError("MegaFace needs distractors, and how many there are")
    _, person_P = np.unique(np.asarray(identity_P), return_inverse=True)
    probe_N, cosine_N = _mate_pairs(probe, person_P)
    if not len(probe_N):
        raise UserError("no person of the probe set has two images, so there are no mates")
    supported = [cut for cut in cuts if cut <= count]
    impostors = len(probe) * count
    far = float(MEGAFACE_FAR)
    allowed = accepted_at(far, impostors)
    maxima = PrefixMaxima(len(probe), supported)
    highest = Highest(allowed + 1)
    seen = 0
    for block in cosine_blocks(probe, distractors):
        maxima.add(block)
        highest.add(block)
        seen = block.first + len(block)
    if seen != count:
        raise UserError(f"{seen} distractors came, {count} were announced")
    maximum_PC = maxima.maximum_PC.numpy()
    rank1: dict[str, float | None] = {str(cut): None for cut in cuts}
    hits = [cosine_N > maximum_PC[probe_N, number] for number in range(len(supported))]
    rank1 |= {str(cut): float(hit_N.mean()) for cut, hit_N in zip(supported, hits, strict=True)}
    accepted_N = cosine_N > float(highest.values()[allowed])
    tar = float(accepted_N.mean()) if 1 / impostors <= far else None
    spread = rate_intervals(np.stack([*hits, accepted_N]), person_P[probe_N], resamples=bootstrap, seed=seed)
    rank1_spread = {str(cut): one for cut, one in zip(supported, spread, strict=False)}
    notes = _unsupported(rank1, "rank-1 at", count, "distractors")
    notes += _unsupported({MEGAFACE_FAR: tar}, "TAR at FAR", impostors, "impostor pairs")
    alone = len(probe) - len(np.unique(probe_N))
    if alone:
        notes.append(f"{alone} probes are the only image of their person and have no mate")
    return MegafaceResult(
        rank1=rank1,
        rank1_interval={cut: rank1_spread.get(cut) for cut in rank1},
        tar_at_far={MEGAFACE_FAR: tar},
        tar_at_far_interval={MEGAFACE_FAR: None if tar is None else spread[-1]},
        probes=len(probe),
        identities=int(person_P.max()) + 1,
        mate_pairs=len(probe_N),
        distractors=count,
        protocol=protocol,
        notes=notes,
        right_X=hits[-1] if hits else None,
    )


def _mate_pairs(probe_PD: torch.Tensor, person_P: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
    """All ordered pairs of two images of one person: the probe of each, and their cosine."""
    probes, cosines = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for members in np.split(np.argsort(person_P, kind="stable"), np.cumsum(np.bincount(person_P))[:-1]):
        rows = probe_PD[torch.from_numpy(members)]
        pairs = ~np.eye(len(members), dtype=bool)
        cosines.append((rows @ rows.T).numpy()[pairs])
        probes.append(np.repeat(members, len(members) - 1))
    return np.concatenate(probes), np.concatenate(cosines)


def _unsupported(values: dict[str, float | None], what: str, count: int, of: str) -> list[str]:
    missing = [key for key, value in values.items() if value is None]
    return [f"{what} {', '.join(missing)} needs more than the {count} {of}"] if missing else []
