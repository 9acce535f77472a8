"""Search probes in a gallery of any size: blocks of cosines, and what is kept of them while they pass.

A gallery block costs one matrix product, one pass for the row maxima, and more only for the rows in which
the block brings something new; memory does not grow with the gallery.

Shape suffixes: P probes, G gallery entries (B of them in a block), D embedding size, K entries kept, M
values kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import NonFiniteError, UserError

Rows = npt.NDArray[np.floating] | torch.Tensor

BLOCK = 4096  # gallery entries a block; with 3,530 probes their cosines take 58 MB


def unit(
    rows_XD: Rows, what: str = "embedding", first: int = 0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows divided by their norms, float32 on the CPU; zero rows stay zero.

    Args:
        what, first: how an error names the rows: ``embedding 17``, counted from `first`.
        out: memory for the result, used where it has the right shape.

    Raises:
        UserError: not two-dimensional.
        NonFiniteError: naming the first row that is not finite.
    """
    if isinstance(rows_XD, np.ndarray) and not rows_XD.flags.writeable:
        rows_XD = rows_XD.copy()  # a memory-mapped block, which torch will not share
    rows = torch.as_tensor(rows_XD)
    if rows.ndim != 2:
        raise UserError(f"{what}s have shape {tuple(rows.shape)}; (number, embedding size) is expected")
    rows = rows.detach().to("cpu", torch.float32)
    norm_X1 = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    finite_X = torch.isfinite(norm_X1[:, 0])
    if not finite_X.all():
        raise NonFiniteError(f"{what} {first + int((~finite_X).nonzero()[0])} is not finite; check the model")
    fits = out is not None and out.shape == rows.shape
    return torch.div(rows, torch.where(norm_X1 > 0, norm_X1, 1.0), out=out if fits else None)


def cosine_blocks(
    probe_PD: torch.Tensor, gallery: Rows | Iterable[Rows], block: int = BLOCK
) -> Iterator[tuple[int, torch.Tensor]]:
    """Cosines of all probes with successive blocks of the gallery.

    Args:
        probe_PD: unit vectors.
        gallery: (G, D) embeddings of any norm, an array (memory-mapped ones are read block by block) or any
            iterable of such arrays.
        block: entries a block.

    Yields:
        The number of the block's first entry, and its cosines (P, B); the same memory is used again for the
        next block.
    """
    portions = [gallery] if isinstance(gallery, np.ndarray | torch.Tensor) else gallery
    buffer = entry_BD = torch.empty(0)
    first = 0
    for portion in portions:
        for start in range(0, len(portion), block):
            entry_BD = unit(portion[start : start + block], "gallery entry", first, entry_BD)
            if entry_BD.shape[1] != probe_PD.shape[1]:
                raise UserError(
                    f"gallery embeddings have {entry_BD.shape[1]} numbers, probes {probe_PD.shape[1]}"
                )
            shape = len(probe_PD), len(entry_BD)
            if buffer.shape != shape:
                buffer = torch.empty(shape)
            torch.mm(probe_PD, entry_BD.T, out=buffer)
            yield first, buffer
            first += len(entry_BD)


class TopK:
    """The K entries nearest to each probe so far, best first; `index_PK` is −1 where there are not yet K."""

    def __init__(self, probes: int, k: int) -> None:
        self.score_PK = torch.full((probes, k), -torch.inf)
        self.index_PK = torch.full((probes, k), -1, dtype=torch.int64)

    def add(self, first: int, cosine_PB: torch.Tensor) -> None:
        """Take in the cosines with entries `first`, `first` + 1, …"""
        rows_R = (cosine_PB.amax(dim=1) > self.score_PK[:, -1]).nonzero()[:, 0]
        if not len(rows_R):
            return
        chosen_RB = cosine_PB if len(rows_R) == len(cosine_PB) else cosine_PB[rows_R]
        if first == 0:
            new_score, new_index = chosen_RB.topk(min(self.score_PK.shape[1], chosen_RB.shape[1]), dim=1)
        else:
            new_score, new_index = _above(chosen_RB, self.score_PK[rows_R, -1:])
        score = torch.cat([self.score_PK[rows_R], new_score], dim=1)
        index = torch.cat([self.index_PK[rows_R], new_index + first], dim=1)
        # A stable sort keeps the earlier entry in front where two are equal.
        order = score.argsort(dim=1, descending=True, stable=True)[:, : self.score_PK.shape[1]]
        self.score_PK[rows_R] = score.gather(1, order)
        self.index_PK[rows_R] = index.gather(1, order)


def _above(cosine_RB: torch.Tensor, least_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The few values of each row above `least_R1`, and their columns, padded with −∞ to equal length."""
    row, column = (cosine_RB > least_R1).nonzero(as_tuple=True)
    count_R = torch.bincount(row, minlength=len(cosine_RB))
    place = torch.arange(len(row)) - (count_R.cumsum(0) - count_R)[row]
    score = torch.full((len(cosine_RB), int(count_R.max())), -torch.inf)
    index = torch.zeros(score.shape, dtype=torch.int64)
    score[row, place] = cosine_RB[row, column]
    index[row, place] = column
    return score, index


class PrefixMaxima:
    """The highest cosine of each probe among the first `cuts[0]`, `cuts[1]`, … entries.

    Args:
        cuts: ascending numbers of entries.
    """

    def __init__(self, probes: int, cuts: list[int]) -> None:
        self.cuts = cuts
        self.maximum_PC = torch.full((probes, len(cuts)), -torch.inf)

    def add(self, first: int, cosine_PB: torch.Tensor, row_maximum_P: torch.Tensor) -> None:
        """Take in a block and its row maxima."""
        stop = first + cosine_PB.shape[1]
        for number, cut in enumerate(self.cuts):
            if first < cut:
                inside_P = row_maximum_P if stop <= cut else cosine_PB[:, : cut - first].amax(dim=1)
                torch.maximum(self.maximum_PC[:, number], inside_P, out=self.maximum_PC[:, number])


class Highest:
    """The M highest of all values that pass by, of billions."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[torch.Tensor] = []
        self._held = 0
        self._floor = -torch.inf  # nothing at or below it is among the highest

    def add(self, cosine_PB: torch.Tensor, row_maximum_P: torch.Tensor) -> None:
        """Take in a block and its row maxima."""
        rows_R = (row_maximum_P > self._floor).nonzero()[:, 0]
        if not len(rows_R):
            return
        chosen = cosine_PB if len(rows_R) == len(cosine_PB) else cosine_PB[rows_R]
        self._kept.append(chosen[chosen > self._floor])
        self._held += len(self._kept[-1])
        if self._held > 2 * self.count:
            self._prune()

    def values(self) -> torch.Tensor:
        """The highest values, descending; fewer than M where fewer came by."""
        self._prune()
        return self._kept[0].sort(descending=True).values

    def _prune(self) -> None:
        held = torch.cat(self._kept) if self._kept else torch.empty(0)
        if len(held) > self.count:
            held = held.topk(self.count, sorted=False).values
            self._floor = float(held.min())
        self._kept, self._held = [held], len(held)
