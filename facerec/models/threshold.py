"""The threshold that comes with a model: the cosine above which it says "same", and how probable that is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """Where a model says "same", as `facerec.evaluation.details.choose_threshold` chose it.

    Attributes:
        cosine: two faces are of one identity where their cosine is above it.
        far: FAR that was asked for, the highest that the set may show.
        tar: the part of the set's genuine pairs that is accepted.
        set: name of the set, ``lfw``.
        genuine, impostor: numbers of its pairs.
        slope, intercept: of the log-odds of "same" over the cosine, where both are as frequent.
        flip: embeddings are sums over an image and its mirror.
    """

    cosine: float
    far: float
    tar: float
    set: str
    genuine: int
    impostor: int
    slope: float
    intercept: float
    flip: bool = True

    def probability(self, cosine: float, prior: float = 0.5) -> float:
        """Probability, 0 … 1, that two faces of this cosine are of one identity.

        Args:
            cosine: of their embeddings.
            prior: how many of the pairs that are met are of one identity, above 0 and below 1.
        """
        odds = self.slope * cosine + self.intercept + math.log(prior / (1 - prior))
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.4f}: FAR {self.far:g}, TAR {self.tar:.4f} on {self.set} "
            f"({self.genuine:,} genuine and {self.impostor:,} impostor pairs)"
        )
