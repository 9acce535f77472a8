"""Pair losses within a batch, through pytorch-metric-learning: triplet and contrastive."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facerec import distributed
from facerec.errors import ConfigError, require
from facerec.heads.base import HEADS, Head, HeadOutput
from facerec.heads.mechanism.batch import check_batch
from facerec.heads.mechanism.ranges import Positive, Range
from facerec.vectors import unit_rows

log = logging.getLogger(__name__)


class PairHead(Head):
    """A head without class weights: a loss over the pairs that the samples of a batch form with each other.

    A batch needs several images of each of its identities: use ``data.shuffle=identity``. Each rank compares
    the samples of its own batch. Reports the mean cosine to samples of the same identity (`target_cosine`),
    to those of others (`other_cosine`), to the nearest of these (`hardest_cosine`), and how often the nearest
    sample of all is of the same identity (`accuracy`). A subclass makes in `__post_init__` the `pair_loss`,
    from embeddings, labels and what the miner chose to a scalar, and the `pair_miner`; None takes all.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pair_loss: Any = None
        self.pair_miner: Any = None

    def check_batches(
        self, images_C: npt.NDArray[np.int64], batch_size: int, images_per_identity: int | None
    ) -> None:
        head = type(self).__name__.lower()
        several = bool((images_C > 1).any()) and batch_size > 1
        where = "no identity of the data has two" if batch_size > 1 else "no batch of one holds two"
        hint = f"compares images of one identity, and {where}; take other data, or another head"
        require(several, "head.name", head, hint)
        if images_per_identity:
            hint = (
                f"leaves no room for a second identity in a batch of {batch_size}; at most half of it will do"
            )
            require(images_per_identity < batch_size, "data.images_per_identity", images_per_identity, hint)
            return
        pairs = batch_size * (batch_size - 1) / 2
        pairs *= float((images_C * (images_C - 1.0)).sum() / (images_C.sum() * (images_C.sum() - 1.0)))
        if pairs < batch_size / 4:  # at least half of its images are alone
            log.warning(
                "head=%s: a batch of %d has %.2g pairs of one identity on average, and images without a pair "
                "teach little or nothing; data.shuffle=identity brings them together",
                *(head, batch_size, pairs),
            )

    def forward(self, embedding_BD: Tensor, label_B: Tensor, sizes: distributed.Sizes = None) -> HeadOutput:
        """Return loss and statistics of raw embeddings and integer labels; errors: `check_batch`."""
        check_batch(embedding_BD, label_B, self.num_classes, self.embedding_size)
        with torch.autocast(embedding_BD.device.type, enabled=False):
            if embedding_BD.dtype in (torch.float16, torch.bfloat16):
                embedding_BD = embedding_BD.float()
            chosen = None if self.pair_miner is None else self.pair_miner(embedding_BD.detach(), label_B)
            loss = self.pair_loss(embedding_BD, label_B, chosen)
            return HeadOutput(loss, pair_statistics(embedding_BD, label_B))


@HEADS.register("triplet")
class Triplet(PairHead):
    """max(0, ‖a − p‖² − ‖a − n‖² + margin) over triplets of unit embeddings, mean over those that are not 0.

    Schroff et al. 2015, CVPR, "FaceNet", equation 2; needs the extra ``metric``.

    Args:
        margin: margin of the squared distances.
        miner: ``semihard`` (the negative is farther than the positive, but within the margin), ``hard`` (the
            negative is nearer), ``batch_hard`` (each anchor's farthest positive and nearest negative) or
            ``all``.
    """

    margin: Positive = 0.2
    miner: Literal["semihard", "hard", "batch_hard", "all"] = "semihard"

    def __post_init__(self) -> None:
        super().__post_init__()
        library = metric_learning("triplet")
        distance = library.distances.LpDistance(normalize_embeddings=True, p=2, power=2)
        self.pair_loss = library.losses.TripletMarginLoss(self.margin, distance=distance)
        if self.miner == "batch_hard":
            self.pair_miner = library.miners.BatchHardMiner(distance=distance)
        elif self.miner != "all":
            self.pair_miner = library.miners.TripletMarginMiner(self.margin, self.miner, distance=distance)


@HEADS.register("contrastive")
class Contrastive(PairHead):
    """Mean distance of unit embeddings within identities, plus mean max(0, margin − distance) between them.

    Hadsell et al. 2006, CVPR; each mean is over the pairs that are not 0. Needs the extra ``metric``.

    Args:
        margin: distance that other identities should have, in (0, 2].
        miner: ``all`` or ``hard`` (positives farther than the nearest negative and negatives nearer than the
            farthest positive of their anchor).
    """

    margin: Annotated[
        float, Range(lambda m: 0 < m <= 2, "unit vectors are at most 2 apart; from above 0 to 2")
    ] = 1.0
    miner: Literal["all", "hard"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        library = metric_learning("contrastive")
        self.pair_loss = library.losses.ContrastiveLoss(pos_margin=0, neg_margin=self.margin)
        if self.miner == "hard":
            self.pair_miner = library.miners.MultiSimilarityMiner(epsilon=0)


def metric_learning(head: str) -> ModuleType:
    """Return the library pytorch_metric_learning with its losses; `ConfigError` where it is not installed."""
    try:
        for part in ("distances", "losses", "miners"):
            importlib.import_module(f"pytorch_metric_learning.{part}")
    except ImportError as error:
        hint = "needs pytorch-metric-learning: pip install 'facerec[metric]'"
        raise ConfigError("head", head, hint) from error
    return importlib.import_module("pytorch_metric_learning")


@torch.no_grad()
def pair_statistics(embedding_BD: Tensor, label_B: Tensor) -> dict[str, Tensor]:
    """Return cosines within a batch's identities and between them, as scalar tensors; NaN without pairs."""
    unit_BD = unit_rows(embedding_BD)
    cosine_BB = (unit_BD @ unit_BD.t()).fill_diagonal_(torch.nan)
    same_BB = label_B[:, None] == label_B
    positive_BB = torch.where(same_BB, cosine_BB, torch.nan)
    negative_BB = torch.where(same_BB, torch.nan, cosine_BB)
    nearest_positive_B = positive_BB.nan_to_num(-torch.inf).amax(1)
    nearest_negative_B = negative_BB.nan_to_num(-torch.inf).amax(1)
    return {
        "target_cosine": positive_BB.nanmean(),
        "target_angle": torch.rad2deg(positive_BB.clamp(-1, 1).acos()).nanmean(),
        "other_cosine": negative_BB.nanmean(),
        "hardest_cosine": nearest_negative_B.mean(),
        "accuracy": (nearest_positive_B > nearest_negative_B).float().mean(),
        "embedding_norm": torch.linalg.vector_norm(embedding_BD, dim=1).mean(),
    }
