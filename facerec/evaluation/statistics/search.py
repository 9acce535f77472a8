"""Search probes in a gallery of any size: blocks of cosines, and what is kept of them while they pass.

A gallery block costs one matrix product, one pass for the row maxima, and more only for the rows in which
the block brings something new; memory does not grow with the gallery.

Shape suffixes: P probes, G gallery entries (B of them in a block), D embedding size, K entries kept, M
values kept."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from facerec.errors import UserError
from facerec.vectors import unit_rows

Rows = npt.NDArray[np.floating] | torch.Tensor

_TILE = 128

BLOCK = 4096  # gallery entries a block; with 3,530 probes their cosines take 58 MB


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


class CosineBlock:
    """Cosines of all probes with the gallery entries `first`, `first` + 1, …, float32 (P, B)."""

    def __init__(self, first: int, cosine_PB: torch.Tensor) -> None:
        self.first = first
        self.cosine_PB = cosine_PB

    def __len__(self) -> int:
        """B, the number of entries."""
        return self.cosine_PB.shape[1]

    def columns(self, start: int, stop: int) -> CosineBlock:
        """A part of the block, in the same memory."""
        return CosineBlock(self.first + start, self.cosine_PB[:, start:stop])

    @functools.cached_property
    def tiled_PTW(self) -> torch.Tensor:
        """The cosines in tiles; one tile a row where they do not divide evenly."""
        width = _TILE if len(self) % _TILE == 0 else len(self)
        return self.cosine_PB.unflatten(1, (-1, width))

    @functools.cached_property
    def tile_maximum_PT(self) -> torch.Tensor:
        """The highest cosine of each tile."""
        return self.tiled_PTW.amax(dim=2)

    @functools.cached_property
    def maximum_P(self) -> torch.Tensor:
        """The highest cosine of each probe."""
        return self.tile_maximum_PT.amax(dim=1)

    def above(self, least_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cosines above each probe's `least_P`: which probe, which gallery entry, the value; (N,) each,
        by probe and entry."""
        probe_N, tile_N = (self.tile_maximum_PT > least_P[:, None]).nonzero(as_tuple=True)
        value_NW = self.tiled_PTW[probe_N, tile_N]
        found_N, place_N = (value_NW > least_P[probe_N, None]).nonzero(as_tuple=True)
        entry_N = self.first + tile_N[found_N] * value_NW.shape[1] + place_N
        return probe_N[found_N], entry_N, value_NW[found_N, place_N]


def cosine_blocks(
    probe_PD: torch.Tensor, gallery: Rows | Iterable[Rows], block: int = BLOCK
) -> Iterator[CosineBlock]:
    """Cosines of all probes with successive blocks of the gallery.

    Args:
        probe_PD: unit vectors.
        gallery: (G, D) embeddings of any norm, an array (memory-mapped ones are read block by block) or any
            iterable of such arrays.
        block: entries a block.

    Yields:
        Blocks; the memory of one is used again for the next.
    """
    portions = [gallery] if isinstance(gallery, np.ndarray | torch.Tensor) else gallery
    buffer = torch.empty(0)
    first = 0
    for portion in portions:
        for start in range(0, len(portion), block):
            entry_BD = unit(portion[start : start + block], "gallery entry", first)
            if entry_BD.shape[1] != probe_PD.shape[1]:
                raise UserError(
                    f"gallery embeddings have {entry_BD.shape[1]} numbers, probes {probe_PD.shape[1]}"
                )
            shape = len(probe_PD), len(entry_BD)
            if buffer.shape != shape:
                buffer = torch.empty(shape)
            torch.mm(probe_PD, entry_BD.T, out=buffer)
            yield CosineBlock(first, buffer)
            first += len(entry_BD)


class TopK:
    """The K entries nearest to each probe so far, best first; `index_PK` is −1 where there are not yet K."""

    def __init__(self, probes: int, k: int) -> None:
        self.score_PK = torch.full((probes, k), -torch.inf)
        self.index_PK = torch.full((probes, k), -1, dtype=torch.int64)
        self._seen = 0

    def add(self, block: CosineBlock) -> None:
        """Take in a block."""
        k = self.score_PK.shape[1]
        if self._seen < k:
            # The first entries set a bar, so that few of the others have to be looked at.
            seed = min(len(block), max(_TILE, -(-4 * k // _TILE) * _TILE))
            value, place = block.cosine_PB[:, :seed].topk(min(k, seed), dim=1)
            self._merge(torch.arange(len(value)), value, place + block.first)
            self._seen += seed
            if seed < len(block):
                self.add(block.columns(seed, len(block)))
            return
        probe_N, entry_N, value_N = block.above(self.score_PK[:, -1])
        if len(probe_N):
            count_P = torch.bincount(probe_N, minlength=len(self.score_PK))
            place_N = torch.arange(len(probe_N)) - (count_P.cumsum(0) - count_P)[probe_N]
            probe_R = count_P.nonzero()[:, 0]
            row_N = ((count_P > 0).cumsum(0) - 1)[probe_N]
            value = torch.full((len(probe_R), int(count_P.max())), -torch.inf)
            index = torch.full(value.shape, -1, dtype=torch.int64)
            value[row_N, place_N] = value_N
            index[row_N, place_N] = entry_N
            self._merge(probe_R, value, index)

    def _merge(self, probe_R: torch.Tensor, value: torch.Tensor, index: torch.Tensor) -> None:
        """Sort more entries of some probes in; of equal ones the earlier stays in front."""
        value = torch.cat([self.score_PK[probe_R], value], dim=1)
        index = torch.cat([self.index_PK[probe_R], index], dim=1)
        order = value.argsort(dim=1, descending=True, stable=True)[:, : self.score_PK.shape[1]]
        self.score_PK[probe_R] = value.gather(1, order)
        self.index_PK[probe_R] = index.gather(1, order)


class PrefixMaxima:
    """The highest cosine of each probe among the first `cuts[0]`, `cuts[1]`, … entries.

    Args:
        cuts: ascending numbers of entries.
    """

    def __init__(self, probes: int, cuts: list[int]) -> None:
        self.cuts = cuts
        self.maximum_PC = torch.full((probes, len(cuts)), -torch.inf)

    def add(self, block: CosineBlock) -> None:
        """Take in a block."""
        for number, cut in enumerate(self.cuts):
            inside = min(cut - block.first, len(block))
            if inside > 0:
                whole = inside == len(block)
                maximum_P = block.maximum_P if whole else block.cosine_PB[:, :inside].amax(dim=1)
                torch.maximum(self.maximum_PC[:, number], maximum_P, out=self.maximum_PC[:, number])


class Highest:
    """The `count` highest of all values that pass by, of billions."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[torch.Tensor] = []
        self._held = 0
        self._floor = -torch.inf  # nothing at or below it is among the highest

    def add(self, block: CosineBlock) -> None:
        """Take in a block."""
        if self._floor == -torch.inf and len(block) > _TILE:
            # The first values set a bar, so that few of the others have to be looked at.
            self.add(block.columns(0, _TILE))
            self.add(block.columns(_TILE, len(block)))
            return
        least_P = torch.full((len(block.cosine_PB),), self._floor)
        self._kept.append(block.above(least_P)[2])
        self._held += len(self._kept[-1])
        if self._held > 2 * self.count:
            self._prune()

    def values(self) -> torch.Tensor:
        """The highest values, descending; fewer than `count` where fewer came by."""
        self._prune()
        return self._kept[0].sort(descending=True).values

    def _prune(self) -> None:
        held = torch.cat(self._kept) if self._kept else torch.empty(0)
        if len(held) > self.count:
            held = held.topk(self.count, sorted=False).values
            self._floor = float(held.min())
        self._kept, self._held = [held], len(held)
