"""data.kind=mix: several sources at once, each identity of each source an identity of its own.

Shape suffixes: N images of all sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from facerec.errors import counted
from facerec.images.decode import MAX_PIXELS, Encoded, Pixels
from facerec.images.images import LabelledImages
from facerec.loading.settings import DataSettings, of_source
from facerec.loading.sources import SOURCES, open_faces


class MixedImages(LabelledImages):
    """The images of several sources, one source after the other.

    Labels of a source follow those of the source before. The names of identities begin with the title of
    their source: ``casia/17``. `label_N` lies in memory, 8 bytes per image.

    Args:
        parts: the sources.
        weights: the fraction of the samples that each gives; None: each image once in an epoch.
    """

    def __init__(self, parts: Sequence[LabelledImages], weights: Sequence[float] | None = None) -> None:
        self.parts, self.weights = list(parts), weights
        many = Counter(part.title for part in parts)
        self.titles = [p.title if many[p.title] == 1 else f"{p.title}{i}" for i, p in enumerate(parts)]
        self.title, self.root = "+".join(self.titles), parts[0].root
        counts, first_label = [len(part) for part in parts], 0
        self._begin = np.concatenate(([0], np.cumsum(counts)))
        label_N = np.empty(sum(counts), np.int64)
        for part, begin in zip(parts, self._begin.tolist(), strict=False):
            np.add(part.label_N, first_label, out=label_N[begin : begin + len(part)])
            first_label += part.num_classes
        label_N.flags.writeable = False
        self.label_N = label_N
        self.classes = [f"{t}/{name}" for t, p in zip(self.titles, parts, strict=True) for name in p.classes]
        self.mixture = None if weights is None else (counts, weights)

    def _of(self, i: int) -> tuple[int, int]:
        """The source of image i, and the image's position there."""
        k = int(np.searchsorted(self._begin, i, side="right")) - 1
        return k, i - self._begin.item(k)

    def encoded(self, i: int) -> Encoded:
        k, own = self._of(i)
        return self.parts[k].encoded(own)

    def decode_into(self, i: int, out_HWC: Pixels, max_pixels: int = MAX_PIXELS) -> None:
        k, own = self._of(i)
        self.parts[k].decode_into(own, out_HWC, max_pixels)

    def where(self, i: int) -> str:
        k, own = self._of(i)
        return self.parts[k].where(own)

    def name(self, i: int) -> str:
        k, own = self._of(i)
        return f"{self.titles[k]}/{self.parts[k].name(own)}"

    def sample(self, count: int) -> Iterator[Encoded]:
        """Yield nothing: each source has been looked at when it was opened."""
        return iter(())

    def describe(self) -> str:
        number = counted(len(self.parts), "source")
        total = f"{counted(self.num_classes, 'identity')}, {counted(len(self), 'image')}"
        each = [part.describe() for part in self.parts]
        if self.weights is not None:
            fractions = [weight / sum(self.weights) for weight in self.weights]
            each = [
                f"{one} ({fraction:.3g} of the samples)"
                for one, fraction in zip(each, fractions, strict=True)
            ]
        return f"{number}: {total} per epoch; {'; '.join(each)}"

    def contents(self) -> list[np.ndarray | Sequence[str]]:
        return [*super().contents(), self._begin, *(one for part in self.parts for one in part.contents())]

    def prefetch(self, positions: Sequence[int]) -> None:
        position_N = np.asarray(positions, np.int64)
        for part, begin, end in zip(self.parts, self._begin[:-1], self._begin[1:], strict=True):
            part.prefetch((position_N[(position_N >= begin) & (position_N < end)] - begin).tolist())


@SOURCES.register("mix")
def open_mix(settings: DataSettings) -> LabelledImages:
    """Each of `settings.sources`, mixed by `settings.weights`."""
    parts = []
    for i, source in enumerate(settings.parts()):
        with of_source(i):
            parts.append(open_faces(source))
    return MixedImages(parts, settings.weights)
