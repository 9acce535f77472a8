"""Search probes in a gallery of any size: blocks of cosines, and what is kept of them while they pass.

A gallery block costs one matrix product and a comparison, and more only for the probes to which it brings
something new; memory does not grow with the gallery.

Shape suffixes: P probes, G gallery entries (B of them in a block), D embedding size, K entries kept, C cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import UserError
from facerec.vectors import unit_rows

Rows = npt.NDArray[np.floating] | torch.Tensor

BLOCK = 4096  # gallery entries per block; with 3,530 probes their cosines take 58 MB


def unit(rows_XD: Rows, what: str = "embedding", first: int = 0) -> torch.Tensor:
    """`unit_rows` of an array or tensor, float32 on the CPU.

    Raises:
        UserError: not two-dimensional.
        NonFiniteError: naming the first row that is not finite.
    """
    if isinstance(rows_XD, np.ndarray) and not rows_XD.flags.writeable:
        rows_XD = rows_XD.copy()  # a memory-mapped block, which torch will not share
    rows = torch.as_tensor(rows_XD)
    if rows.ndim != 2:
        raise UserError(f"{what}s have shape {tuple(rows.shape)}; (number, embedding size) is expected")
    return unit_rows(rows.detach().to("cpu", torch.float32), what, first=first)


def cosine_blocks(
    probe_PD: torch.Tensor, gallery: Rows | Iterable[Rows], block: int = BLOCK
) -> Iterator[tuple[int, torch.Tensor]]:
    """Number of the first entry of successive gallery blocks, and all probes' cosines with them, (P, B).

    The memory of one block is used again for the next.

    Args:
        probe_PD: unit vectors.
        gallery: (G, D) embeddings of any norm, an array (memory-mapped ones are read block by block) or any
            iterable of such arrays.
        block: entries per block.
    """
    portions = [gallery] if isinstance(gallery, np.ndarray | torch.Tensor) else gallery
    cosine_PB = torch.empty(0)
    first = 0
    for portion in portions:
        for start in range(0, len(portion), block):
            entry_BD = unit(portion[start : start + block], "gallery entry", first)
            if entry_BD.shape[1] != probe_PD.shape[1]:
                raise UserError(
                    f"gallery embeddings have {entry_BD.shape[1]} numbers, probes {probe_PD.shape[1]}"
                )
            shape = len(probe_PD), len(entry_BD)
            if cosine_PB.shape != shape:
                cosine_PB = torch.empty(shape)
            torch.mm(probe_PD, entry_BD.T, out=cosine_PB)
            yield first, cosine_PB
            first += len(entry_BD)


class TopK:
    """The K entries nearest to each probe so far, best first; `index_PK` is −1 where there are not yet K."""

    def __init__(self, probes: int, k: int) -> None:
        self.score_PK = torch.full((probes, k), -torch.inf)
        self.index_PK = torch.full((probes, k), -1, dtype=torch.int64)
        self.entries = 0  # that passed by

    @classmethod
    def of(cls, probe_PD: torch.Tensor, gallery: Rows | Iterable[Rows], k: int) -> TopK:
        """Search a whole gallery, which `cosine_blocks` takes."""
        top = cls(len(probe_PD), k)
        for first, cosine_PB in cosine_blocks(probe_PD, gallery):
            top.add(first, cosine_PB)
        return top

    def add(self, first: int, cosine_PB: torch.Tensor) -> None:
        """Take in a block of `cosine_blocks`."""
        entries, k = cosine_PB.shape[1], self.score_PK.shape[1]
        self.entries += entries
        if self.entries - entries < k:
            value, place = cosine_PB.topk(min(k, entries), dim=1)
            self._merge(torch.arange(len(value)), value, place + first)
            return
        probe_N, place_N = (cosine_PB > self.score_PK[:, -1:]).nonzero(as_tuple=True)
        if not len(probe_N):
            return
        # The new entries of each probe side by side.
        count_P = torch.bincount(probe_N, minlength=len(cosine_PB))
        probe_R, row_N = probe_N.unique(return_inverse=True)
        column_N = torch.arange(len(probe_N)) - (count_P.cumsum(0) - count_P)[probe_N]
        value = torch.full((len(probe_R), int(count_P.max())), -torch.inf)
        index = torch.full(value.shape, -1, dtype=torch.int64)
        value[row_N, column_N] = cosine_PB[probe_N, place_N]
        index[row_N, column_N] = first + place_N
        self._merge(probe_R, value, index)

    def _merge(self, probe_R: torch.Tensor, value: torch.Tensor, index: torch.Tensor) -> None:
        """Sort more entries of some probes in; of equal ones the earlier stays in front."""
        value = torch.cat([self.score_PK[probe_R], value], dim=1)
        index = torch.cat([self.index_PK[probe_R], index], dim=1)
        order = value.argsort(dim=1, descending=True, stable=True)[:, : self.score_PK.shape[1]]
        self.score_PK[probe_R] = value.gather(1, order)
        self.index_PK[probe_R] = index.gather(1, order)


class PrefixMaxima:
    """The highest cosine of each probe among the first `cuts[0]`, `cuts[1]`, … entries; `cuts` ascend."""

    def __init__(self, probes: int, cuts: list[int]) -> None:
        self.cuts = cuts
        self.maximum_PC = torch.full((probes, len(cuts)), -torch.inf)

    def add(self, first: int, cosine_PB: torch.Tensor) -> None:
        """Take in a block of `cosine_blocks`."""
        maximum_P = cosine_PB.amax(dim=1)
        for kept_P, cut in zip(self.maximum_PC.T, self.cuts, strict=True):
            inside = min(cut - first, cosine_PB.shape[1])
            if inside == cosine_PB.shape[1]:
                torch.maximum(kept_P, maximum_P, out=kept_P)
            elif inside > 0:
                torch.maximum(kept_P, cosine_PB[:, :inside].amax(dim=1), out=kept_P)


class Highest:
    """The `count` highest of all values that pass by, of billions."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept = torch.empty(0)
        self._floor = -torch.inf  # nothing at or below it is among the highest

    def add(self, cosine_PB: torch.Tensor) -> None:
        """Take in values."""
        self._kept = torch.cat([self._kept, cosine_PB[cosine_PB > self._floor]])
        if len(self._kept) > 2 * self.count:
            self._prune()

    def values(self) -> torch.Tensor:
        """The highest values, descending; fewer than `count` where fewer came by."""
        self._prune()
        return self._kept.sort(descending=True).values

    def _prune(self) -> None:
        if len(self._kept) > self.count:
            self._kept = self._kept.topk(self.count, sorted=False).values
            self._floor = float(self._kept.min())
