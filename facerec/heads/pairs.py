"""Pair losses within a batch, through pytorch-metric-learning: triplet and contrastive."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from facerec import processes
from facerec.errors import ConfigError, require
from facerec.heads.base import HEADS, Head, HeadOutput, check_batch

log = logging.getLogger(__name__)


class PairHead(Head):
    """A head without class weights: a loss over the pairs that the samples of a batch form with each other.

    A batch needs several pictures of each of its people: use ``data.shuffle=identity``. Across processes each
    compares the samples of its own batch. Reports the mean cosine to samples of the same person
    (`target_cosine`), to those of others (`other_cosine`), to the nearest of these (`hardest_cosine`), and
    how often the nearest sample of all is of the same person (`accuracy`).

    Args:
        num_classes: C ≥ 1; labels are checked against it.
        embedding_size: D ≥ 1; embeddings are checked against it.
        loss: from embeddings, labels and what the miner chose to a scalar.
        miner: chooses pairs or triplets of a batch; None takes all.
    """

    def __init__(self, num_classes: int, embedding_size: int, loss: Any, miner: Any) -> None:
        super().__init__()
        require(num_classes >= 1, "head.num_classes", num_classes, "must be 1 or more")
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.pair_loss, self.pair_miner = loss, miner

    def check_batches(self, images_C: npt.NDArray[np.int64], batch_size: int, together: int | None) -> None:
        head = type(self).__name__.lower()
        several = bool((images_C > 1).any()) and batch_size > 1
        where = "no identity of the data has two" if batch_size > 1 else "no batch of one holds two"
        mend = f"compares images of one identity, and {where}; take other data, or another head"
        require(several, "head.name", head, mend)
        if together:
            mend = (
                f"leaves no room for a second identity in a batch of {batch_size}; at most half of it will do"
            )
            require(together < batch_size, "data.images_per_identity", together, mend)
            return
        pairs = batch_size * (batch_size - 1) / 2
        pairs *= float((images_C * (images_C - 1.0)).sum() / (images_C.sum() * (images_C.sum() - 1.0)))
        if pairs < batch_size / 4:  # at least half of its images are alone
            log.warning(
                "head=%s: a batch of %d has %.2g pairs of one identity on average, and images without a pair "
                "teach little or nothing; data.shuffle=identity brings them together",
                *(head, batch_size, pairs),
            )

    def forward(self, embedding_BD: Tensor, label_B: Tensor, sizes: processes.Sizes = None) -> HeadOutput:
        """Loss and statistics of a batch of raw embeddings; labels are integers in [0, C).

        Raises:
            UserError: embeddings or labels of another shape or type.
            DamagedDataError: a label outside [0, C).
        """
        check_batch(embedding_BD, label_B, self.num_classes, self.embedding_size)
        with torch.autocast(embedding_BD.device.type, enabled=False):
            if embedding_BD.dtype in (torch.float16, torch.bfloat16):
                embedding_BD = embedding_BD.float()
            chosen = None if self.pair_miner is None else self.pair_miner(embedding_BD.detach(), label_B)
            loss = self.pair_loss(embedding_BD, label_B, chosen)
            return HeadOutput(loss, describe_pairs(embedding_BD, label_B))


@HEADS.register("triplet")
class Triplet(PairHead):
    """max(0, ‖a − p‖² − ‖a − n‖² + margin) over triplets of unit embeddings, mean over those that are not 0.

    Schroff et al. 2015, CVPR, "FaceNet", equation 2; needs the extra ``metric``.

    Args:
        margin: > 0; 0.2.
        miner: ``semihard`` (the negative is farther than the positive, but within the margin), ``hard`` (the
            negative is nearer), ``batch_hard`` (each anchor's farthest positive and nearest negative) or
            ``all``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.2,
        miner: Literal["semihard", "hard", "batch_hard", "all"] = "semihard",
    ) -> None:
        require(margin > 0, "head.margin", margin, "must be greater than 0")
        library = metric_learning("triplet")
        distance = library.distances.LpDistance(normalize_embeddings=True, p=2, power=2)
        miners = {
            "all": lambda: None,
            "batch_hard": lambda: library.miners.BatchHardMiner(distance=distance),
            "hard": lambda: library.miners.TripletMarginMiner(margin, "hard", distance=distance),
            "semihard": lambda: library.miners.TripletMarginMiner(margin, "semihard", distance=distance),
        }
        loss = library.losses.TripletMarginLoss(margin, distance=distance)
        super().__init__(num_classes, embedding_size, loss, miners[miner]())
        self.margin, self.miner = margin, miner


@HEADS.register("contrastive")
class Contrastive(PairHead):
    """Distances of unit embeddings within people, and max(0, margin − distance) between them, each a mean.

    Hadsell et al. 2006, CVPR; each mean is over the pairs that are not 0. Needs the extra ``metric``.

    Args:
        margin: distance that other people should have, in (0, 2]; 1.0.
        miner: ``all`` or ``hard`` (positives farther than the nearest negative and negatives nearer than the
            farthest positive of their anchor).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embedding_size: int,
        margin: float = 1.0,
        miner: Literal["all", "hard"] = "all",
    ) -> None:
        require(0 < margin <= 2, "head.margin", margin, "unit vectors are at most 2 apart; from above 0 to 2")
        library = metric_learning("contrastive")
        loss = library.losses.ContrastiveLoss(pos_margin=0, neg_margin=margin)
        chooser = library.miners.MultiSimilarityMiner(epsilon=0) if miner == "hard" else None
        super().__init__(num_classes, embedding_size, loss, chooser)
        self.margin, self.miner = margin, miner


def metric_learning(head: str) -> ModuleType:
    """The library pytorch_metric_learning with its losses; `ConfigError` where it is not installed."""
    try:
        for part in ("distances", "losses", "miners"):
            importlib.import_module(f"pytorch_metric_learning.{part}")
    except ImportError as error:
        mend = "needs pytorch-metric-learning: pip install 'facerec[metric]'"
        raise ConfigError("head", head, mend) from error
    return importlib.import_module("pytorch_metric_learning")


@torch.no_grad()
def describe_pairs(embedding_BD: Tensor, label_B: Tensor) -> dict[str, Tensor]:
    """What a batch's pairs look like, as scalar tensors; NaN where it has no pair of a kind."""
    unit_BD = normalize(embedding_BD)
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
