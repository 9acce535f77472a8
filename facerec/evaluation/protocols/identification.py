"""Identification, 1:N: closed-set ranks and open-set rates of probes in a gallery.

Shape suffixes: P probes, G gallery entries, K entries kept per probe, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import MissingDataError, UserError, counted, require
from facerec.evaluation.embedding import embed_portions
from facerec.evaluation.metrics.tar_at_far import tar_at_far
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.base import PROTOCOLS, Protocol
from facerec.evaluation.results import (
    Number,
    Result,
    Series,
    interval_facts,
    logger,
    numbers_at,
    rate_series,
    unsupported,
)
from facerec.evaluation.statistics.bootstrap import Interval, rate_intervals
from facerec.evaluation.statistics.search import Rows, TopK, unit
from facerec.evaluation.statistics.separation import Ints, Separation
from facerec.loading.folders import FileImages, images_below
from facerec.models.model import Model
from facerec.packs.text import numbered_lines

NAMED_RANKS = (1, 5, 20)
FPIR_TARGETS = ("1e-1", "1e-2", "1e-3", "1e-4")


@PROTOCOLS.register("identification")
@dataclass(frozen=True)
class Identification(Protocol):
    """Gallery and probes in folders of identities, closed and open set.

    Args:
        gallery, probes: folders with a folder of aligned faces per identity; an identity has the same folder
            name in both.
        distractors: folder of more gallery images, at any depth, of identities that are no probes;
            null: none.
        leave_out: file that lists images to leave out, a relative path per line; null: none.
    """

    protocol: Literal["identification"] = "identification"
    gallery: str | None = None
    probes: str | None = None
    distractors: str | None = None
    leave_out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("gallery", "probes"):
            given = getattr(self, key) is not None
            require(given, f"eval.{key}", None, "must be a folder of folders, one per identity")

    def results(self, model: Model) -> Mapping[str, Result]:
        """Search the probes in the gallery.

        Raises:
            MissingDataError: a folder is missing or has no images.
            UserError: no probe's identity is in the gallery.
        """
        folders = Folders(self.leave_out)
        gallery, probes = folders.labelled(self.gallery or ""), folders.labelled(self.probes or "")
        others = None if self.distractors is None else folders.images(self.distractors)
        left_out = folders.notes()
        gallery_GD, probe_PD = (
            np.concatenate(list(embed_portions(model, images, self, name)))
            for images, name in ((gallery, "gallery"), (probes, "probes"))
        )
        result = identify(
            probe_PD,
            probes.labels,
            gallery_GD,
            gallery.labels,
            distractors=() if others is None else embed_portions(model, others, self, "distractors"),
            bootstrap=self.resamples,
            seed=self.seed,
            protocol=f"identification over folders, cosine, {self.views}",
        )
        overlap = overlap_notes(model, {*gallery.labels, *probes.labels}, "identification")
        return {"identification": replace(result, notes=result.notes + left_out + overlap)}


def read_leave_out(path: Path) -> list[str]:
    """A list of images to leave out, a relative path per line; lines that begin with # are comments.

    Raises:
        MissingDataError: there is no such file.
        DamagedDataError: it is not in UTF-8.
    """
    return [line for _, line in numbered_lines(path) if not line.startswith("#")]


class Folders:
    """Images below folders, without those of a list (`read_leave_out`), if there is one."""

    def __init__(self, leave_out: str | Path | None) -> None:
        listed = [] if leave_out is None else read_leave_out(Path(leave_out))
        self._listed = {Path(path).as_posix() for path in listed}
        self._met: set[str] = set()

    def images(self, root: str) -> FileImages:
        """All images below `root`, sorted."""
        return FileImages(Path(root), self._paths(root))

    def labelled(self, root: str) -> FileImages:
        """Images in folders of identities, labelled by those folders' names; loose images do not count."""
        paths = [path for path in self._paths(root) if "/" in path]
        if not paths:
            raise MissingDataError(f"{root}: no images in folders of identities")
        return FileImages(Path(root), paths, [path.partition("/")[0] for path in paths])

    def _paths(self, root: str) -> list[str]:
        paths = images_below(Path(root))
        self._met |= self._listed.intersection(paths)
        return [path for path in paths if path not in self._listed]

    def notes(self) -> list[str]:
        """Return the notes of the result; warn where the list names images that are nowhere."""
        missing = sorted(self._listed - self._met)
        if missing:
            said = "not there, of %s to leave out: %d, e.g. %s"
            logger.warning(said, counted(len(self._listed), "image"), len(missing), missing[0])
        return [f"{counted(len(self._met), 'listed image')} left out"] if self._met else []


@dataclass(frozen=True, kw_only=True)
class IdentificationResult(Result):
    """Ranks (closed set) and detection-and-identification rates (open set).

    The 95 % intervals resample the identities of the mated probes, gallery and thresholds held fixed.

    Attributes:
        rank: fraction of the mated probes whose identity is first, or among the first 5 or 20.
        cmc: the same for rank 1, 2, 3 …
        tpir_at_fpir: fraction of the mated probes that are first and above the lowest threshold at which the
            fraction of non-mated probes above it is within the target; None where there are too few of these.
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

    kind = "identification"

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
        resampled = "identities of the mated probes resampled, thresholds held fixed"
        return [
            ("Protocol", self.protocol),
            ("Probes", f"{self.probes:,} ({self.mated_probes:,} with a mate in the gallery)"),
            ("Gallery", f"{counted(self.gallery, 'entry')} of {counted(self.identities, 'identity')}"),
            ("Distractors", f"{self.distractors:,}"),
            *interval_facts(self.rank_interval, resampled),
        ]


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
        distractors: more gallery entries, of identities that are no probes; an array or several.
        ranks: length of the CMC, 1 or more.
        bootstrap: number of resamples for 95 % intervals; 0 for none.

    Raises:
        UserError: no probe has a mate, or the numbers of rows and identities differ.
        NonFiniteError: naming an embedding that is not finite.
    """
    require(ranks >= 1, "ranks", ranks, "must be 1 or more")
    probe = unit(probe_PD, "probe")
    both = np.concatenate([np.asarray(gallery_identity_G), np.asarray(probe_identity_P)])
    names, number = np.unique(both, return_inverse=True)
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
    top = TopK.of(probe, _all_of(gallery_GD, distractors), keep)
    score_PK, index_PK = top.score_PK.numpy(), top.index_PK.numpy()
    rank_P = _ranks(score_PK, _identities(index_PK, gallery_G, len(names)), probe_P)
    cmc = [float((rank_P[mated_P] <= rank).mean()) for rank in range(1, ranks + 1)]
    first_P = rank_P[mated_P] == 1
    found_P = np.where(first_P, -score_PK[mated_P, 0], np.inf)
    separation = Separation(found_P, -score_PK[~mated_P, 0])
    tpir = tar_at_far(separation, FPIR_TARGETS)
    rank = {str(rank): cmc[rank - 1] for rank in NAMED_RANKS if rank <= ranks}
    hits = {at: rank_P[mated_P] <= int(at) for at in rank}
    hits |= {
        at: found_P < separation.threshold_at_far(float(at)) for at, rate in tpir.items() if rate is not None
    }
    intervals = rate_intervals(hits, probe_P[mated_P], resamples=bootstrap, seed=seed)
    return IdentificationResult(
        rank=rank,
        rank_interval={at: intervals[at] for at in rank},
        cmc=cmc,
        tpir_at_fpir=tpir,
        tpir_at_fpir_interval={at: intervals.get(at) for at in tpir},
        probes=len(probe),
        mated_probes=int(mated_P.sum()),
        gallery=len(gallery_G),
        identities=len(np.unique(gallery_G)),
        distractors=top.entries - len(gallery_G),
        protocol=protocol,
        notes=unsupported(tpir, "TPIR at FPIR", int((~mated_P).sum()), "non-mated probes"),
        score_key="rank_1",
        decided="mated probes found at rank 1",
        right_X=first_P,
        curves=[
            Series("cmc", {"x": list(range(1, ranks + 1)), "y": cmc}),
            *rate_series(separation, "cosine", chart="tpir"),
        ],
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
